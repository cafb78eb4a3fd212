//go:build integration

package cni_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/internal/testing/vswitch"
	"github.com/weft-cni/weft/pkg/cni"
	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ovsdb"
)

// binDir holds the plugins that TestMain built.
var binDir string

// TestMain moves the test process into its own network and mount namespaces, so that the node's ends of the veths and
// the mounts of the pods' namespaces are always deleted with it.
func TestMain(m *testing.M) {
	const inside = "WEFT_CNI_TEST_PLUGINS"
	if os.Getenv(inside) == "" {
		// While there is still a network to download modules from.
		dir, err := os.MkdirTemp("", "weft-cni-bin")
		must(err)
		build("../..", "-o", dir, "./cmd/weft-cni")
		build("../../test/bench/plugins", "-o", dir, "tool")
		runtime.LockOSThread()
		must(unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS))
		must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		must(os.MkdirAll("/run/netns", 0o755))
		must(unix.Mount("weft-cni-test", "/run/netns", "tmpfs", 0, ""))
		must(unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), inside+"="+dir)))
	}
	if os.Getenv("WEFT_CNI_TEST_AGENT") != "" {
		os.Exit(m.Run()) // the agent that another test kills: it needs no plugins and could not clean up
	}
	lo, err := netlink.LinkByName("lo")
	must(err)
	must(netlink.LinkSetUp(lo))
	binDir = os.Getenv(inside)
	code := m.Run()
	must(os.RemoveAll(binDir))
	os.Exit(code)
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "test setup:", err)
		os.Exit(1)
	}
}

func build(dir string, args ...string) {
	cmd := exec.Command("go", append([]string{"build"}, args...)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		must(fmt.Errorf("%s: %w: %s", cmd, err, out))
	}
}

// node is a node with a real Open vSwitch, the real CNI server and libcni as its runtime. Only the flow loop is a fake.
type node struct {
	t      *testing.T
	ctx    context.Context
	dir    string
	ovs    *vswitch.Instance
	db     *ovsdb.Client
	flows  *fakeFlows
	socket string
	libcni *libcni.CNIConfig

	mu       sync.Mutex
	settings cni.Settings
	// stop ends the running server and returns the result of Serve.
	stop func() error
	// kept is the result of the last Recover.
	kept   []model.Attachment
	server *cni.Server // the running server
}

func newNode(t *testing.T, podCIDRs ...string) *node {
	t.Helper()
	return newNodeFor(t, 2*time.Minute, podCIDRs...)
}

// newNodeFor is newNode with a longer timeout.
func newNodeFor(t *testing.T, timeout time.Duration, podCIDRs ...string) *node {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	dir, err := os.MkdirTemp("", "wc") //nolint:usetesting // a test's own directory has too long a name for Unix sockets
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &node{t: t, ctx: ctx, dir: dir, flows: newFakeFlows(), socket: filepath.Join(dir, "s", "cni.sock")}
	n.ovs, err = vswitch.Start(ctx, vswitch.Config{RunDir: filepath.Join(dir, "run"), DataDir: filepath.Join(dir, "data")})
	check(t, err)
	t.Cleanup(func() { check(t, n.ovs.Stop()) })
	n.connect()
	_, err = n.db.EnsureBridge(ctx, bridge)
	check(t, err)
	n.settings = cni.Settings{MTU: 1400, UserspaceDatapath: true, PodCIDRs: prefixes(podCIDRs...)}
	// libcni creates this directory at the first call, and concurrent first calls would race.
	exec := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}}
	n.libcni = libcni.NewCNIConfigWithCacheDir([]string{binDir}, filepath.Join(dir, "cache"), exec)
	n.start()
	t.Cleanup(func() {
		if n.stop != nil {
			check(t, n.stop())
		}
	})
	return n
}

// bridge is the agent's configuration of the bridge.
var bridge = ovsdb.Bridge{Datapath: "netdev"}

// vsctl changes the database as another program. It does not wait for ovs-vswitchd.
func (n *node) vsctl(args ...string) {
	n.t.Helper()
	_, err := n.ovs.Run(n.ctx, "ovs-vsctl", append([]string{"--timeout=10", "--no-wait"}, args...)...)
	check(n.t, err)
}

// connect connects to the node's OVSDB as an agent does.
func (n *node) connect() {
	n.t.Helper()
	var err error
	n.db, err = ovsdb.Connect(n.ctx, "unix:"+filepath.Join(n.dir, "run", "db.sock"), model.BridgeName, n.log())
	check(n.t, err)
	n.t.Cleanup(n.db.Close)
}

func (n *node) filterPodLinks(ctx context.Context) error {
	nft, err := host.NFTables()
	if err != nil {
		return err
	}
	return host.New(nft, "/proc/sys", n.log()).FilterPodLinks(ctx)
}

func prefixes(cidrs ...string) (parsed []netip.Prefix) {
	for _, c := range cidrs {
		parsed = append(parsed, netip.MustParsePrefix(c))
	}
	return parsed
}

// log writes to the test's output until the test ends: the server may notice later that a plugin was killed.
func (n *node) log() *slog.Logger {
	return slog.New(slog.NewTextHandler(n.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func (n *node) set(change func(*cni.Settings)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(&n.settings)
}

// start runs a new server, as a start of the agent does.
func (n *node) start() {
	n.t.Helper()
	n.startWith(n.db)
}

func (n *node) startWith(ports cni.Ports) {
	n.t.Helper()
	s := cni.NewServer(cni.Config{
		Socket: n.socket,
		Settings: func() cni.Settings {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.settings
		},
		Ports:          ports,
		Flows:          n.flows,
		FilterPodLinks: n.filterPodLinks,
		Log:            n.log(),
	})
	n.server = s
	var err error
	n.kept, err = s.Recover(n.ctx)
	check(n.t, err)
	// The flow loop of a new agent has the attachments that Recover returned, and deletes all other flows.
	n.flows.restart(n.kept)
	ctx, cancel := context.WithCancel(n.ctx)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	n.stop = func() error {
		n.stop = nil
		cancel()
		return <-done
	}
	n.eventually("the CNI server listens", n.listens)
}

// listens reports whether an agent has the CNI socket. The socket appears before the agent listens on it, and gets its
// mode after that.
func (n *node) listens() bool {
	info, err := os.Stat(n.socket)
	return err == nil && info.Mode().Perm() == 0o600
}

func (n *node) eventually(what string, ok func() bool) {
	n.t.Helper()
	testenv.Until(n.t, what, ok)
}

// conf is a configuration list with weft-cni alone, in the given version; extra are further keys of it.
func (n *node) conf(version, extra string) *libcni.NetworkConfigList {
	n.t.Helper()
	return n.list(fmt.Sprintf(`{"cniVersion": %q, "name": "weft", "plugins": [{"type": "weft-cni", "socket": %q%s}]}`,
		version, n.socket, extra))
}

func (n *node) list(text string) *libcni.NetworkConfigList {
	n.t.Helper()
	list, err := libcni.NetworkConfFromBytes([]byte(text))
	check(n.t, err)
	return list
}

// pod is a container: a network namespace and the runtime's arguments for it.
type pod struct {
	netns ns.NetNS
	rt    *libcni.RuntimeConf
}

var containers atomic.Int64

func (n *node) pod(name string) *pod {
	n.t.Helper()
	netns, err := testutils.NewNS()
	check(n.t, err)
	n.t.Cleanup(func() {
		netns.Close()
		check(n.t, testutils.UnmountNS(netns))
	})
	id := fmt.Sprintf("c%d", containers.Add(1))
	return &pod{netns, &libcni.RuntimeConf{
		ContainerID: id, NetNS: netns.Path(), IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", name},
			{"K8S_POD_UID", "uid-" + id}, {"K8S_POD_INFRA_CONTAINER_ID", id}},
	}}
}

func (n *node) add(list *libcni.NetworkConfigList, p *pod) (*current.Result, error) {
	r, err := n.libcni.AddNetworkList(n.ctx, list, p.rt)
	if err != nil {
		return nil, err
	}
	return current.NewResultFromResult(r)
}

func (n *node) mustAdd(list *libcni.NetworkConfigList, p *pod) *current.Result {
	n.t.Helper()
	r, err := n.add(list, p)
	check(n.t, err)
	return r
}

func (n *node) mustDel(list *libcni.NetworkConfigList, p *pod) {
	n.t.Helper()
	check(n.t, n.libcni.DelNetworkList(n.ctx, list, p.rt))
}

// run runs the plugin without libcni, for requests that libcni would reject.
func (n *node) run(command, stdin string, env ...string) (stdout []byte, err error) {
	cmd := n.command(command, stdin, env...)
	stdout, err = cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		e := &types.Error{}
		if jsonErr := json.Unmarshal(stdout, e); jsonErr != nil {
			return stdout, fmt.Errorf("weft-cni %s failed without a CNI error: %w: %s", command, err, stdout)
		}
		return stdout, e
	}
	return stdout, err
}

func (n *node) command(command, stdin string, env ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(binDir, "weft-cni"))
	cmd.Env = append([]string{"CNI_COMMAND=" + command, "CNI_PATH=" + binDir,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=by-hand"}, env...)
	cmd.Stdin = strings.NewReader(stdin)
	return cmd
}

// attached lists the attachments recorded in OVSDB.
func (n *node) attached() []model.Attachment {
	n.t.Helper()
	atts, bad, err := n.db.Attachments(n.ctx)
	check(n.t, err)
	if len(bad) > 0 {
		n.t.Fatalf("ports with unreadable records: %v", bad)
	}
	return atts
}

// links lists the node's ends of all veths.
func (n *node) links() []string {
	n.t.Helper()
	all, err := netlink.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) {
		all, err = netlink.LinkList()
	}
	check(n.t, err)
	var names []string
	for _, l := range all {
		if l.Type() == "veth" {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// wantNothing fails when a trace of any attachment is left.
func (n *node) wantNothing() {
	n.t.Helper()
	if atts, links, flows := n.attached(), n.links(), n.flows.keys(); len(atts)+len(links)+len(flows) > 0 {
		n.t.Errorf("left over: ports %v, links %v, flows %v", atts, links, flows)
	}
}

// wantCode fails unless err is a well-formed CNI error with this code, whose message contains the text.
func wantCode(t *testing.T, err error, code uint, contains string) {
	t.Helper()
	var e *types.Error
	switch {
	case err == nil:
		t.Errorf("no error, want code %d", code)
	case !errors.As(err, &e):
		t.Errorf("not a CNI error: %v", err)
	case e.Code != code || !strings.Contains(e.Error(), contains):
		t.Errorf("CNI error %d %q, want code %d and %q", e.Code, e.Error(), code, contains)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fakeFlows is a flow loop that records the attachments it would have compiled flows for. gate, when set, blocks
// Attach.
type fakeFlows struct {
	mu      sync.Mutex
	present map[model.AttachmentKey]model.Attachment
	err     error
	gate    chan struct{}
	entered chan model.AttachmentKey
	// deadline is the deadline of the last Attach.
	deadline time.Time
}

func newFakeFlows() *fakeFlows {
	return &fakeFlows{present: map[model.AttachmentKey]model.Attachment{}, entered: make(chan model.AttachmentKey, 1000)}
}

func (f *fakeFlows) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeFlows) restart(kept []model.Attachment) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.present = map[model.AttachmentKey]model.Attachment{}
	for _, att := range kept {
		f.present[att.Key()] = att
	}
}

// block makes Attach wait until the returned function is called.
func (f *fakeFlows) block() (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	gate := make(chan struct{})
	f.gate = gate
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.gate = nil
		close(gate)
	}
}

func (f *fakeFlows) Attach(ctx context.Context, att model.Attachment) error {
	f.mu.Lock()
	f.present[att.Key()] = att
	f.deadline, _ = ctx.Deadline()
	gate, err := f.gate, f.err
	f.mu.Unlock()
	f.entered <- att.Key()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (f *fakeFlows) Detach(_ context.Context, key model.AttachmentKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.present, key)
	return nil
}

func (f *fakeFlows) Check(_ context.Context, key model.AttachmentKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.present[key]; !ok {
		return errors.New("not in the switch")
	}
	return nil
}

func (f *fakeFlows) keys() []model.AttachmentKey {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.present))
}
