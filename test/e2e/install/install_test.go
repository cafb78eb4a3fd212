//go:build e2e

package install

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/cluster/manifest"
	"github.com/weft-cni/weft/test/cluster/state"
	"github.com/weft-cni/weft/test/e2e/internal/probeimage"
)

// world is a cluster without Weft and Open vSwitch, and the folders of two releases.
type world struct {
	root   string // of the repository, for the pages and the tools that serve the test
	record state.Cluster
	bin    string // has kubectl-weft of the older release
	// older and newer are the releases' folders, with the settings of this cluster in weft.yaml; the versions are their
	// names.
	older, newer string
	probe        probeimage.Image
}

// diagnosis is what a person looks at first.
const diagnosis = `kubectl weft status || true
kubectl get pods -A -o wide
for ns in weft-openvswitch weft-system; do
	kubectl -n $ns logs --prefix --tail=30 -l app.kubernetes.io/part-of=weft
	kubectl -n $ns logs --prefix --tail=30 --previous -l app.kubernetes.io/part-of=weft || true
done`

// TestInstall goes from an empty cluster to an empty cluster.
func TestInstall(t *testing.T) {
	w := open(t)
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"check", w.check}, {"install", w.install}, {"connectivity", w.connectivity}, {"faults", w.faults},
		{"upgrade", w.upgrade}, {"openvswitch", w.openVSwitch}, {"rollback", w.rollback}, {"remove", w.remove},
	} {
		if begun := time.Now(); !t.Run(step.name, step.run) {
			out, err := w.shell(t.Context(), w.older, diagnosis)
			t.Logf("%v\n%s", err, out)
			t.Fatalf("%s failed after %.0f s", step.name, time.Since(begun).Seconds())
		}
	}
}

func open(t *testing.T) *world {
	t.Helper()
	w := &world{bin: t.TempDir()}
	var err error
	if w.root, err = testenv.Repository(); err != nil {
		t.Fatal(err)
	}
	if w.record, err = state.Load(os.Getenv("WEFT_CLUSTER_DIR")); err != nil {
		t.Fatal(err)
	}
	if w.probe, err = probeimage.Build(t.Context(), w.root, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	releases, err := filepath.Glob(filepath.Join(os.Getenv("WEFT_RELEASES"), "v*"))
	if err != nil || len(releases) != 2 {
		t.Fatalf("WEFT_RELEASES=%s has %d releases, want two: %v", os.Getenv("WEFT_RELEASES"), len(releases), err)
	}
	server := w.serveImages(t)
	image, err := testenv.Program(t.Context(), w.root, "./test/image", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for i, folder := range []*string{&w.older, &w.newer} {
		*folder = filepath.Join(t.TempDir(), filepath.Base(releases[i]))
		if err := os.CopyFS(*folder, os.DirFS(releases[i])); err != nil {
			t.Fatal(err)
		}
		w.must(t, *folder, "sha256sum --check --strict --quiet SHA256SUMS")
		w.must(t, *folder, image+" push -from . -plain-http -registry "+server)
		w.configure(t, *folder)
	}
	w.must(t, w.older, "tar -xzf weftctl_*_linux_amd64.tar.gz -C "+w.bin)
	cluster, err := testenv.Program(t.Context(), w.root, "./test/cluster", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w.must(t, w.root, fmt.Sprintf("%s --dir %s --name %s load %s", cluster, w.record.Dir, w.record.Plan.Name, w.probe.File))
	return w
}

// version is that of a release's folder.
func version(folder string) string { return filepath.Base(folder) }

// serveImages starts a registry, and has the nodes take the releases' image from there.
func (w *world) serveImages(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(w.record.Plan.Host()[0].Addr().String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.NewLogLogger(slog.DiscardHandler, 0)
	server := &http.Server{Handler: registry.New(registry.Logger(log)), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	const script = `mkdir -p /etc/containerd/certs.d/weft.io
printf '[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$1" >/etc/containerd/certs.d/weft.io/hosts.toml`
	for _, n := range w.record.Nodes {
		if _, err := n.Sandbox.Run(t.Context(), "sh", "-ec", script, "sh", listener.Addr().String()); err != nil {
			t.Fatal(err)
		}
	}
	return listener.Addr().String()
}

// configure edits the settings in a release's weft.yaml, as the page says.
func (w *world) configure(t *testing.T, folder string) {
	t.Helper()
	file := filepath.Join(folder, "weft.yaml")
	text, err := os.ReadFile(file)
	if err == nil {
		text, err = manifest.Configure(text, map[string]string{"datapath": "netdev", "transport": "direct",
			"apiServer": w.record.APIServer})
	}
	if err == nil {
		err = os.WriteFile(file, text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// check: before the install, weftctl names what the nodes lack; with it, nothing.
func (w *world) check(t *testing.T) {
	const command = "kubectl weft check --datapath netdev"
	out, err := w.shell(t.Context(), w.older, command)
	if err == nil || strings.Count(out, "/run/openvswitch/db.sock not found") != len(w.record.Nodes) {
		t.Errorf("nodes without Open vSwitch: %v\n%s", err, out)
	}
	w.must(t, w.older, w.section(t, "upgrade.md", "Open vSwitch"))
	w.must(t, w.older, command)
}

// install: as the older release's folder has it.
func (w *world) install(t *testing.T) {
	w.must(t, w.older, w.section(t, "upgrade.md", "Upgrade"))
	w.wantVersion(t, w.older)
}

func (w *world) connectivity(t *testing.T) {
	w.must(t, w.older, "kubectl -n kube-system rollout status deployment/coredns --timeout=3m")
	w.must(t, w.older, "kubectl weft connectivity test --start 3m --timeout 8m")
}

// upgrade, and rollback: the page's commands, under traffic of which nothing is lost.
func (w *world) upgrade(t *testing.T) {
	w.change(t, w.newer, "Upgrade")
}

func (w *world) rollback(t *testing.T) {
	w.change(t, w.older, "Rollback")
}

func (w *world) change(t *testing.T, folder, heading string) {
	t.Helper()
	commands := w.section(t, "upgrade.md", heading)
	traffic := w.startTraffic(t)
	w.must(t, folder, commands)
	traffic.wantNoLoss(t)
	w.wantVersion(t, folder)
}

// openVSwitch: the switch is replaced by the page's commands, and all is well again. On the userspace datapath that
// interrupts traffic; TestKernelForwardsMeanwhile (internal/openvswitch) is about the kernel's.
func (w *world) openVSwitch(t *testing.T) {
	w.must(t, w.newer, w.section(t, "upgrade.md", "Open vSwitch"))
	w.must(t, w.newer, "kubectl weft status --wait 2m")
	traffic := w.startTraffic(t)
	traffic.wantNoLoss(t)
}

// wantVersion wants every node's agent to be of a release, and well, in the words of another release's weftctl.
func (w *world) wantVersion(t *testing.T, folder string) {
	t.Helper()
	out := w.must(t, folder, "kubectl weft status")
	for _, n := range w.record.Nodes {
		found := false
		for line := range strings.Lines(out) {
			fields := strings.Fields(line)
			found = found || len(fields) > 2 && fields[0] == n.Name && fields[1] == version(folder) &&
				fields[len(fields)-1] == "well"
		}
		if !found {
			t.Errorf("%s is not well with %s:\n%s", n.Name, version(folder), out)
		}
	}
}

// remove: the page's commands leave nothing of Weft and Open vSwitch, in the cluster and on its nodes.
func (w *world) remove(t *testing.T) {
	w.must(t, w.older, "kubectl delete namespace "+namespace+" --ignore-not-found")
	w.must(t, w.older, w.section(t, "upgrade.md", "Remove"))
	script := w.section(t, "upgrade.md", "On every node")
	for _, n := range w.record.Nodes {
		if out, err := n.Sandbox.Run(t.Context(), "bash", "-euc", script); err != nil {
			t.Errorf("%s: %v\n%s", n.Name, err, out)
		}
	}
	w.must(t, w.older, w.section(t, "upgrade.md", "Remove Open vSwitch"))
	for _, n := range w.record.Nodes {
		if left := leftovers(t.Context(), n); left != "" {
			t.Errorf("%s still has:\n%s", n.Name, left)
		}
	}
	objects := w.must(t, w.older, "kubectl get all,configmaps,serviceaccounts,namespaces,clusterroles,clusterrolebindings,"+
		"validatingadmissionpolicies,validatingadmissionpolicybindings -A -o name")
	for name := range strings.Lines(objects) {
		// weft.test is CoreDNS', of bin/cluster.
		if strings.Contains(strings.ToLower(name), "weft") && !strings.Contains(name, "weft.test:") {
			t.Errorf("the cluster still has %s", name)
		}
	}
}

// trace is a line of leftovers that is Weft's or Open vSwitch's.
var trace = regexp.MustCompile(`weft|ovs|^(870|32900):|openvswitch`)

// leftovers is what of Weft and Open vSwitch a node still has.
func leftovers(ctx context.Context, n state.Node) string {
	// What cannot be asked must not count as clean: the script ends at the first command that fails.
	const script = `set -e
ip -o link
nft list tables
for f in -4 -6; do ip $f rule; ip $f route show table all; done
for f in /etc/cni/net.d/*weft* /opt/cni/bin/weft-cni /run/weft /run/openvswitch/*.pid /run/openvswitch/*.sock; do
	if [ -e "$f" ]; then echo "$f"; fi
done`
	out, err := n.Sandbox.Run(ctx, "sh", "-c", script)
	if err != nil {
		return err.Error()
	}
	var left []string
	for line := range strings.Lines(out) {
		if trace.MatchString(line) {
			left = append(left, line)
		}
	}
	return strings.TrimSpace(strings.Join(left, ""))
}
