// Package lab brings Kubernetes manifests up on real switches without Kubernetes: each node is a network namespace with
// an Open vSwitch and a real weft-agent of its own, each pod a network namespace that the real CNI code connected, with
// a responder on every port.
//
// One daemon process owns a lab: Serve. It makes the nodes, serves the API that the agents watch, follows the
// manifests, holds the pods' namespaces, answers on their ports and sends the probes. Everything that stands lives only
// as long as its processes, which are all in the lab's cgroup (see package sandbox), so Down needs no record of what
// was made. Up, Down, Status and the others are called by weft-lab and talk to the daemon through a Unix socket.
//
// In the daemon, one goroutine (Serve's) changes pods and objects; the mutex guards what others read.
package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/lab/datapath"
	"github.com/weft-cni/weft/test/lab/manifest"
	"github.com/weft-cni/weft/test/lab/podns"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// Options describe a lab.
type Options struct {
	Name string
	// Manifests are absolute paths of files and directories; manifest.Stdin stands for Input.
	Manifests []string
	Input     []byte
	// Kustomizations are absolute paths of directories that are built as `kubectl kustomize` does.
	Kustomizations []string
	// Settings are the agents' besides what stands below, as KEY=VALUE (docs/configuration.md).
	Settings []string
	// Nodes is how many to make where the manifests have none; 0 for the default.
	Nodes int
	// Segments is into how many subnets the nodes are divided, in order, with a router between them; 0 is one without a
	// router.
	Segments int
	Tunnel   model.Encapsulation
	Datapath config.Datapath
	Family   Family
	// Agent is the path of the weft-agent program.
	Agent string
}

// load reads the manifests. onRead is told the files that kustomizations are built from.
func (opt Options) load(onRead func(file string)) (manifest.Set, error) {
	return manifest.Load(opt.Manifests, manifest.Options{Nodes: opt.Nodes, ServiceCIDRs: opt.Family.serviceCIDRs(),
		Input: opt.Input, Kustomizations: opt.Kustomizations, OnRead: onRead})
}

// Check reads the manifests as Up does, and says what they ask for. It needs no root.
func Check(opt Options) (manifest.Set, error) {
	if err := opt.Family.check(); err != nil {
		return manifest.Set{}, err
	}
	if opt.Segments < 0 || opt.Segments > maxSegments {
		return manifest.Set{}, fmt.Errorf("--segments %d: want 1 to %d", opt.Segments, maxSegments)
	}
	if opt.Nodes < 0 {
		return manifest.Set{}, fmt.Errorf("--nodes %d: want 1 to %d", opt.Nodes, manifest.MaxNodes)
	}
	if _, err := agentSettings(opt.Settings); err != nil {
		return manifest.Set{}, err
	}
	return opt.load(nil)
}

// agentSettings are lines of the agents' configuration. Agents do not probe their peers unless that is asked for: a
// lab's counters and captures show what its pods and its user send.
func agentSettings(settings []string) (string, error) {
	var lines strings.Builder
	if !slices.ContainsFunc(settings, func(s string) bool { return strings.HasPrefix(s, "peerProbes=") }) {
		lines.WriteString("peerProbes: false\n")
	}
	for _, s := range settings {
		key, value, ok := strings.Cut(s, "=")
		switch {
		case !ok:
			return "", fmt.Errorf("--set %q: want KEY=VALUE", s)
		case key == "tunnelType":
			return "", fmt.Errorf("--set %s: use --tunnel", s)
		case key == "datapath":
			return "", fmt.Errorf("--set %s: use --datapath", s)
		}
		fmt.Fprintf(&lines, "%s: %s\n", key, value)
	}
	if _, err := config.Parse([]byte(lines.String())); err != nil {
		return "", fmt.Errorf("--set: %w", err)
	}
	return lines.String(), nil
}

// Root holds a directory for each lab.
const Root = "/run/weft-lab"

func directory(name string) string { return filepath.Join(Root, name) }

// groupOf is the lab's group of processes. The prefix keeps it apart from the test clusters'.
func groupOf(name string) (sandbox.Group, error) {
	group, err := sandbox.ParseGroup(name)
	if err != nil {
		return "", fmt.Errorf("lab %w", err)
	}
	return "l-" + group, nil
}

// Lab is a running lab, in its daemon.
type Lab struct {
	opt      Options
	group    sandbox.Group
	dir      string
	datapath datapath.Datapath
	log      *slog.Logger
	underlay []sandbox.Underlay // its segments
	outside  sandbox.Node
	nodes    []*node
	api      *apiserver.Store
	server   *apiserver.Server // serves api to the agents
	progress *progress
	started  time.Time
	// built are the files that kustomizations were built from. Serve's goroutine has it.
	built map[string]bool
	// routed are the addresses that the host outside was given a way to. Serve's goroutine has it.
	routed map[netip.Addr]bool

	// mu guards what follows; one goroutine changes it.
	mu      sync.Mutex
	set     manifest.Set
	pods    map[string]*pod // by namespace/name
	problem string          // what is wrong with the manifests as they are now
	seen    string          // the manifests that were applied, as look sees them
}

// Serve is the daemon of a lab: it brings the lab up and keeps it until the context ends. It is started by Up.
func Serve(ctx context.Context, opt Options, log *slog.Logger) error {
	group, err := groupOf(opt.Name)
	if err != nil {
		return err
	}
	l := &Lab{opt: opt, group: group, dir: directory(opt.Name), log: log, api: apiserver.NewStore(),
		pods: map[string]*pod{}, built: map[string]bool{}, progress: newProgress(), started: time.Now()}
	l.server = apiserver.NewServer(l.api)
	if l.datapath, err = findDatapath(opt.Datapath); err != nil {
		return err
	}
	workers, ctx := errgroup.WithContext(ctx)
	workers.Go(func() error { return l.serveControl(ctx) })
	workers.Go(func() error {
		err := l.start(ctx)
		l.progress.finish(err)
		if err != nil {
			return err
		}
		return l.follow(ctx)
	})
	return workers.Wait()
}

// start brings everything up.
func (l *Lab) start(ctx context.Context) error {
	// Before they are read, so that a change meanwhile is seen.
	seen, err := l.look()
	if err != nil {
		return err
	}
	set, err := l.load()
	if err != nil {
		return err
	}
	if l.opt.Tunnel == model.IPIP {
		if err := checkIPIP(); err != nil {
			return fmt.Errorf("--tunnel %s: %w", model.IPIP, err)
		}
	}
	if err := l.startUnderlay(ctx); err != nil {
		return err
	}
	l.planNodes(set)
	if err := l.applyNodes(set); err != nil {
		return err
	}
	if err := l.serveAPI(ctx); err != nil {
		return err
	}
	l.progress.say("%s: namespaces, Open vSwitch (datapath %s), weft-agent", terminal.Count(len(l.nodes), "node"), l.datapath)
	starting, startCtx := errgroup.WithContext(ctx)
	for _, n := range l.nodes {
		starting.Go(func() error { return l.startNode(startCtx, n) })
	}
	starting.Go(func() error { return l.startOutside(startCtx) })
	if err := starting.Wait(); err != nil {
		return err
	}
	for _, n := range l.nodes {
		go l.keepAgent(ctx, n)
	}
	l.progress.say("%s: namespaces, CNI, responders", terminal.Count(len(set.Pods), "pod"))
	if err := l.apply(ctx, set); err != nil {
		return err
	}
	l.seen = seen
	return nil
}

// checkIPIP returns an error when the kernel has no IPIP. Agents would send by Geneve instead.
func checkIPIP() error {
	ns, err := podns.New()
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(host.CheckIPIP)
}

// startUnderlay creates the segments. The first member of each, which routes between them, also serves the API.
func (l *Lab) startUnderlay(ctx context.Context) error {
	first, err := l.group.StartUnderlay(ctx, underlayMTU, nil)
	if err != nil {
		return err
	}
	l.underlay = []sandbox.Underlay{first}
	for segment := 1; segment < l.opt.Segments; segment++ {
		u, err := first.AddSegment(ctx, segment)
		if err != nil {
			return err
		}
		l.underlay = append(l.underlay, u)
	}
	for segment, u := range l.underlay {
		if err := u.Configure(ctx, l.opt.Family.memberOf(segment, apiNumber), l.datapath.Checksums()); err != nil {
			return err
		}
	}
	return nil
}

// gateways are the addresses of a segment's router; none when there is one segment.
func (l *Lab) gateways(segment int) []netip.Addr {
	if len(l.underlay) < 2 {
		return nil
	}
	return addrsOf(l.opt.Family.memberOf(segment, apiNumber))
}

// planNodes gives the nodes their places in the address plan.
func (l *Lab) planNodes(set manifest.Set) {
	for i, n := range set.Nodes {
		segment := i * max(1, l.opt.Segments) / len(set.Nodes)
		l.nodes = append(l.nodes, &node{
			name: n.Name, zone: n.Labels[corev1.LabelTopologyZone], index: i, segment: segment,
			underlay: l.opt.Family.node(segment, i), podCIDRs: l.opt.Family.podCIDRs(i),
		})
	}
}

// serveAPI serves the agents, from the underlay's own network namespace.
func (l *Lab) serveAPI(ctx context.Context) error {
	ns, err := podns.Open(fmt.Sprintf("/proc/%d/ns/net", l.underlay[0].Node.Holder.PID))
	if err != nil {
		return err
	}
	defer ns.Close()
	var listener net.Listener
	if err := ns.Do(func() error {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(l.opt.Family.api()))
		return err
	}); err != nil {
		return fmt.Errorf("serve the API: %w", err)
	}
	server := &http.Server{Handler: l.server, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			l.log.Error("the API server ended", "err", err)
		}
	}()
	return nil
}

func (l *Lab) nodeNamed(name string) *node {
	for _, n := range l.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

// CheckMachine says what this machine lacks for a lab, or nil.
func CheckMachine(opt Options) error {
	if os.Geteuid() != 0 {
		return errors.New("a lab needs root: it makes namespaces, cgroups and network devices")
	}
	if err := missingPrograms(); err != nil {
		return err
	}
	if info, err := os.Stat(opt.Agent); err != nil || info.Mode()&0o111 == 0 {
		return fmt.Errorf("the agent %s is not an executable program (build it with `make build`, or name it with --agent)",
			opt.Agent)
	}
	_, err := findDatapath(opt.Datapath)
	return err
}

// findDatapath returns the named one, if this machine can have it.
func findDatapath(name config.Datapath) (datapath.Datapath, error) {
	d, err := datapath.Parse(string(name))
	if err != nil {
		return "", err
	}
	return d, d.Available()
}
