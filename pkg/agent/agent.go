// Package agent ties one node's parts together: informers, OVSDB, the CNI server and the configuration on one side, the
// loop that programs the switch (pkg/programmer) and the host's own network on the other.
//
// The loop's goroutine owns desired state and writes the switch. Beside it each part of the agent has a goroutine of
// its own: the table of parts (table.go) says what each starts after and which changes wake it. They share what the
// Agent's mutex guards, and the tally of counters, which has a mutex of its own.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-cni/weft/internal/version"
	"github.com/weft-cni/weft/pkg/cni"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/healthcheck"
	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/ovsdb"
	"github.com/weft-cni/weft/pkg/peerprobe"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/state"
)

// Options are what the command line says; what an administrator configures is in the configuration file.
type Options struct {
	Node       string
	ConfigFile string
	// Version is what the program was built from.
	Version version.Info
	// Kubeconfig says how to reach the API server where there is no service account; empty in a pod.
	Kubeconfig string
	// CNISocket is where weft-cni calls; OperatorSocket is where weftctl does.
	CNISocket      string
	OperatorSocket string
	// CNIConfDir is the container runtime's configuration directory.
	CNIConfDir string
	// ProcSys is where the node's /proc/sys is mounted writable.
	ProcSys string
	// HostRun is where the node's /run is mounted; an ovsRunDir below /run is looked for there. Empty: at its own path.
	HostRun string
	// TerminationLog is where the kubelet reads why this process has ended (see WriteTermination); empty for nowhere.
	TerminationLog string
	// Level lets a change of the configuration change what is logged.
	Level *slog.LevelVar
	Log   *slog.Logger
}

// Agent is one node's agent.
type Agent struct {
	opt    Options
	log    *slog.Logger
	client kube.Client
	kube   *kube.Watcher
	events *kube.Reporter
	ovs    *ovsdb.Client
	sw     *ofswitch.Switch
	host   *host.Host
	loop   *programmer.Loop
	cni    *cni.Server
	table  *table
	tally  tally
	peers  kube.Peers

	// What metrics read of the switch and of the CNI server, which there is once the agent is ready.
	counts    *reading[report.Counts]
	occupied  *reading[ofswitch.Occupancy]
	addresses func() []cni.Range

	sweeper   *sweeper
	policyLog *policyLog
	names     *names
	health    *healthcheck.Server
	// mayProgram lets the loop write the switch when it is closed.
	mayProgram chan struct{}

	unavailable atomic.Bool // this node's condition NetworkUnavailable has to be set to False

	synced atomic.Bool // all objects that the API server had at the start were received

	nodeHealth nodeHealth

	captures chan struct{} // has an element for each capture that runs

	prober atomic.Pointer[peerprobe.Prober] // nil while peer nodes are not asked

	around surroundings

	planning sync.Mutex // held while a plan is made

	mu       sync.Mutex
	cfg      config.Config
	mtu      int                    // of pods; 0 until it is known
	underlay string                 // the link that carries the node's address
	problems map[string]string      // by the part that has it
	objects  map[model.Owner]string // what of objects cannot be used
	lost     map[model.Owner]string // external addresses that Services name and others have
	pending  []config.Change        // settings that wait for a restart
	reserved map[netip.Addr]string  // addresses that no Service may have, and whose they are
	ready    bool                   // everything was right once
	// received are the forms besides tunnels that nftables and the switch accept, as the Node object is to say.
	received model.Node
	copyTime time.Time // of the copy that the agent works from; zero when it works from the API server

	seen      *model.Snapshot // the last one that the loop has told of
	hostPorts []host.HostPort // what the host's network was last told
	// localAddrs are the node's addresses as they were found last.
	localAddrs []netip.Addr

	// accepted are the peers that the switch accepted when they were put on the device; the host part's alone.
	accepted []model.WireGuardKey
}

// Run runs the agent until the context ends. It returns an error when it cannot start or a part of it breaks for good.
// The termination message is that error and, of an agent that was not ready or whose node had problems, what was wrong.
func Run(ctx context.Context, opt Options) error {
	var a *Agent
	err := run(ctx, opt, &a)
	var lines []string
	if err != nil {
		lines = append(lines, err.Error())
	}
	if a != nil {
		lines = append(lines, a.lastWords()...)
	}
	return errors.Join(err, WriteTermination(opt.TerminationLog, lines))
}

// run is Run without the termination message. It tells of the agent once there is one.
func run(ctx context.Context, opt Options, made **Agent) error {
	// Read apart from parsing: what changes in between is a change that watchConfig finds.
	configured, err := os.ReadFile(opt.ConfigFile)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	cfg, err := config.Load(opt.ConfigFile)
	if err != nil {
		return err
	}
	opt.Level.Set(cfg.LogLevel)
	a, err := newAgent(opt, cfg)
	if err != nil {
		return err
	}
	*made = a
	a.table = newTable(a.parts(configured), a.setProblem)
	err = a.table.run(ctx)
	a.events.Close()
	if err := errors.Join(err, a.sw.Close()); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// newAgent makes an agent whose parts do not run yet. It speaks to no one.
func newAgent(opt Options, cfg config.Config) (*Agent, error) {
	a := &Agent{
		opt: opt, log: opt.Log, cfg: cfg, problems: map[string]string{}, objects: map[model.Owner]string{},
		seen: &model.Snapshot{}, mayProgram: make(chan struct{}), around: theNode,
		captures: make(chan struct{}, maxCaptures),
	}
	a.nodeHealth.serving, a.nodeHealth.now = a.serving, time.Now
	var err error
	if a.client, err = kube.NewClient(cfg.APIServer, opt.Kubeconfig, &a.peers); err != nil {
		return nil, err
	}
	nft, err := host.NFTables()
	if err != nil {
		return nil, err
	}
	a.host = host.New(nft, opt.ProcSys, a.log)
	datapath := ofswitch.Kernel
	if cfg.Datapath == config.DatapathNetdev {
		datapath = ofswitch.Userspace
	}
	a.sw = ofswitch.New(a.ovsRunDir(), filepath.Dir(a.opt.CNISocket), model.BridgeName, datapath)
	a.loop = programmer.New(programmer.Options{
		Node: opt.Node, Switch: a.sw, Log: a.log, Report: a.reportOwner,
		Problem: a.objectProblem, Viewed: a.viewed, Costly: a.sw.PurgesCache, Hold: a.mayProgram,
		Bundle: observeBundle, Latency: observeProgramming,
		Sweep: func(r programmer.SweepRequest) { a.sweeper.request(r) },
	})
	a.counts, a.occupied = newReading(a.count), newReading(a.sw.Occupancy)
	a.addresses = func() []cni.Range { return a.cni.Ranges() }
	a.sweeper = newSweeper(connectionTracker{a.sw}, a.loop.Installed, a.log)
	a.policyLog = &policyLog{sw: a.sw, log: a.log, view: a.loop.View}
	a.names = a.newNames()
	a.health = healthcheck.New(healthcheck.Options{Healthy: a.serving, Problem: a.reportHealthCheck})
	if a.kube, err = kube.NewWatcher(a.client, opt.Node, a.loop.Submit, a.log); err != nil {
		return nil, err
	}
	a.kube.Draining, a.kube.Unavailable = a.nodeHealth.setDraining, a.setUnavailable
	a.loop.Submit(state.SetKernelDatapath{Kernel: cfg.Datapath == config.DatapathSystem})
	a.loop.Submit(state.SetTime{Now: time.Now()})
	a.submitSettings() // from here on reconfigure does it
	a.events = kube.NewReporter(a.client, opt.Node)
	return a, nil
}

// connectOVSDB connects to OVSDB and makes the CNI server, which keeps its records there.
func (a *Agent) connectOVSDB(ctx context.Context) (err error) {
	a.ovs, err = ovsdb.Connect(ctx, "unix:"+filepath.Join(a.ovsRunDir(), "db.sock"), model.BridgeName, a.log)
	if err != nil {
		return err
	}
	a.cni = cni.NewServer(cni.Config{
		Socket: a.opt.CNISocket, ProcSys: a.opt.ProcSys, Settings: a.settings, Ports: a.ovs,
		Flows: cleanFlows{a.loop, a.sweeper}, Log: a.log, Observe: observeCNI, Result: observeCNIResult,
		FilterPodLinks: a.host.FilterPodLinks,
		Problem:        func(err error) { a.setProblem("CNI socket", err) },
	})
	a.ovs.SetChanging(a.cni.Changing)
	return nil
}

// closeOVSDB ends the connection, if there is one.
func (a *Agent) closeOVSDB() {
	if a.ovs != nil {
		a.ovs.Close()
	}
}

// recoverPods submits the attachments that OVSDB and links have.
func (a *Agent) recoverPods(ctx context.Context) error {
	attachments, err := a.cni.Recover(ctx)
	for _, att := range attachments {
		a.loop.Submit(state.SetAttachment{Attachment: att})
	}
	return err
}

// runLoop runs the loop. It is ready when the snapshot has what was submitted before.
func (a *Agent) runLoop(ctx context.Context, _ <-chan struct{}, ready func()) error {
	go func() {
		if a.loop.Viewed(ctx, a.loop.Submitted()) == nil {
			ready()
		}
	}()
	return a.loop.Run(ctx)
}

// beginProgramming lets the loop write the switch.
func (a *Agent) beginProgramming(context.Context) error {
	close(a.mayProgram)
	return nil
}

func (a *Agent) syncHealthChecks(context.Context) error {
	a.health.Sync(healthChecks(a.loop.View()))
	return nil
}

func (a *Agent) writeConfList(context.Context) error {
	return cni.WriteConfList(a.opt.CNIConfDir, a.opt.CNISocket, a.log)
}

// becomeReady lets probes and CNI commands succeed.
func (a *Agent) becomeReady(context.Context) error {
	a.mu.Lock()
	a.ready = true
	a.mu.Unlock()
	a.checkSelf(a.loop.View())
	a.log.Info("ready", "node", a.opt.Node, "version", a.opt.Version.Version, "commit", a.opt.Version.Commit)
	slim()
	return nil
}

// firstProgramming is how long the first bundle may take before the agent says that it waits for it.
const firstProgramming = time.Second

// programmed waits, for a while and then by failing, until the switch holds the flows.
func (a *Agent) programmed(ctx context.Context) error {
	settled, cancel := context.WithTimeout(ctx, firstProgramming)
	defer cancel()
	_ = a.loop.Programmed(settled, a.loop.Submitted()) // the status says what is missing
	if s := a.loop.Status(); s.Programmed < s.Desired || s.Flows == 0 {
		return fmt.Errorf("the switch holds revision %d of %d: %s", s.Programmed, s.Desired, s.Error)
	}
	if err := a.ovs.Healthy(); err != nil {
		return err
	}
	_, quarantined := a.loop.Installed()
	for _, o := range []model.Owner{model.PipelineOwner, model.SelfOwner} {
		if err := quarantined[o]; err != nil {
			return fmt.Errorf("without the flows of %s the node forwards nothing: %w", o, err)
		}
	}
	return nil
}

// startForwarding clears flow-restore-wait, which OVS's own restart scripts may have left behind, but not before the
// flows are in: with it the node forwards nothing, whatever flows it has.
func (a *Agent) startForwarding(ctx context.Context) error {
	waiting, err := a.ovs.FlowRestoreWait(ctx)
	if err != nil || !waiting {
		return err
	}
	if err := a.loop.Programmed(ctx, a.loop.Verify()); err != nil {
		return err
	}
	a.log.Warn("Open vSwitch was told to wait for its flows (other_config:flow-restore-wait); they are in, so it may forward")
	return a.ovs.SetFlowRestoreWait(ctx, false)
}

// viewed is called by the loop with every new snapshot. The host's network depends on pods only as far as they have
// host ports.
func (a *Agent) viewed(s *model.Snapshot) {
	a.mu.Lock()
	before := a.seen
	a.seen = s
	a.mu.Unlock()
	changes := changesOf(before, s)
	if before.PodsRevision != s.PodsRevision && a.hostPortsChanged(s) {
		changes = append(changes, hostPortsChanged)
	}
	a.checkSelf(s)
	a.wake(changes...)
}

// wake wakes the parts that these changes concern.
func (a *Agent) wake(changes ...change) {
	if a.table != nil {
		a.table.wake(changes...)
	}
}

func (a *Agent) config() config.Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cfg
}

// syncBridge keeps the bridge and the ports that every node has.
func (a *Agent) syncBridge(ctx context.Context) error {
	a.mu.Lock()
	mtu := a.mtu
	cfg := a.cfg
	a.mu.Unlock()
	known, err := a.cni.Known()
	if err != nil {
		return err
	}
	changed, err := a.ovs.EnsureBridge(ctx, ovsdb.Bridge{
		Datapath:   string(cfg.Datapath),
		GatewayMTU: mtu,
		Tunnel:     cfg.PeerTransport().Encapsulation.InSwitch(),
		Tables:     flows.TableNames(),
		Zones: []ovsdb.Zone{
			{Number: flows.Zone}, {Number: flows.SourceZone}, {Number: flows.EndpointZone, Keep: flows.EndpointMemory},
		},
		TunnelChecksum: nodepath.OuterIPv6(a.loop.View().Paths),
		Version:        a.opt.Version.Version,
		Pods:           known,
	})
	// The port of the other tunnel type is only for a change of type, or for nodes that are in the middle of one.
	var optional *ovsdb.OptionalPortError
	if err != nil && !errors.As(err, &optional) {
		return err
	}
	a.setProblem("other tunnel type", err)
	a.wake(bridgeSynced)
	restored, err := a.cni.RestorePorts(ctx)
	if len(restored) > 0 {
		a.log.Warn("pods' ports were missing on the bridge and are back", "ports", restored)
		changed = append(changed, restored...)
	}
	a.setProblem("ports of pods", err) // one pod's must not hold up the node
	mirrors, err := a.ovs.Mirrors(ctx)
	if err == nil && len(mirrors) > 0 {
		err = fmt.Errorf("bridge %s has mirrors, which copy pods' packets: %v; remove them (ovs-vsctl clear Bridge %s "+
			"mirrors) "+
			"unless you want them", model.BridgeName, mirrors, model.BridgeName)
	}
	a.setProblem("mirrors", err)
	if len(changed) > 0 {
		a.log.Info("bridge changed", "bridge", model.BridgeName, "changes", changed)
		a.wake(bridgeRepaired)
		a.loop.Verify()
	}
	return nil
}

// syncDatapath keeps the settings of the switch that are not in OVSDB, and that ovs-vswitchd forgets whenever it ends.
func (a *Agent) syncDatapath(ctx context.Context) error {
	changed, err := a.sw.EnsureFragments(ctx)
	more, tcpErr := a.sw.EnsureLiberal(ctx)
	changed = append(changed, more...)
	more, limitErr := a.sw.EnsureZoneLimit(ctx, flows.EndpointZone, flows.EndpointLimit)
	if changed = append(changed, more...); len(changed) > 0 {
		a.log.Info("datapath changed", "changes", changed)
	}
	sources, sourceErr := a.sw.TunnelSources(ctx)
	if sourceErr == nil {
		a.setProblem(tunnelSourceProblem, wrongSource(a.loop.View(), sources))
	}
	return errors.Join(err, tcpErr, limitErr, sourceErr)
}
