package agent

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
)

// cluster submits what the API server tells of a small cluster, and what the node itself knows.
func cluster(l *programmer.Loop, change func(*model.Service), attachments ...model.Attachment) {
	for name, n := range map[string]byte{"n1": 1, "n2": 2} {
		l.Submit(state.SetNode{Node: model.Node{Name: name, Created: int64(n),
			Addrs:    []netip.Addr{netip.AddrFrom4([4]byte{172, 30, 0, n})},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, n, 0}), 24)}}})
	}
	l.Submit(state.SetServiceCIDRs{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}})
	service := web()
	change(&service)
	l.Submit(state.SetJoinedService{Service: service})
	l.Submit(state.SetOtherProxy{Service: "shop/mesh", ClusterIPs: []netip.Addr{addr("10.96.0.77")}})
	l.Submit(state.SetNamespace{Namespace: policy.Namespace{Name: "shop"}})
	block := policy.IPBlock{CIDR: netip.MustParsePrefix("192.0.2.0/24")}
	l.Submit(state.SetPolicy{Policy: policy.Policy{Namespace: "shop", Name: "db", Types: []policy.Direction{
		policy.Ingress},
		Ingress: []policy.Rule{{Peers: []policy.Peer{{IPBlock: &block}}, Ports: []policy.Port{{Protocol: policy.TCP,
			Number: 5432}}}}}})
	for _, a := range attachments {
		l.Submit(state.SetPod{Pod: policy.Pod{Namespace: a.Pod.Namespace, Name: a.Pod.Name, UID: a.Pod.UID, Node: "n1"}})
	}
}

func shopPod(name string, n byte) model.Attachment {
	return model.Attachment{ContainerID: "c-" + name, IfName: "eth0", Pod: model.PodRef{Namespace: "shop", Name: name,
		UID: "u-" + name},
		HostIfName: "veth-" + name, OFPort: 16 + uint32(n), MAC: model.MAC{0x0a, 0x58, 10, 244, 1, n}, IPs: []netip.Addr{
			netip.AddrFrom4([4]byte{10, 244, 1, n})}}
}

func started(t *testing.T, sw *ofswitch.Fake, before func(*programmer.Loop)) *programmer.Loop {
	t.Helper()
	l := programmer.New(programmer.Options{Node: "n1", Switch: sw, Log: slog.New(slog.DiscardHandler)})
	l.Submit(state.SetTransport{Transport: model.Tunnel(model.VXLAN)})
	l.Submit(state.SetClusterCIDRs{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}})
	before(l)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = l.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	return l
}

// settled waits until the switch holds what a full compilation of the view gives.
func settled(t *testing.T, l *programmer.Loop, sw *ofswitch.Fake, what string) *model.Snapshot {
	t.Helper()
	if err := l.Programmed(t.Context(), l.Submitted()); err != nil {
		t.Fatal(err)
	}
	want, err := flows.Compile(l.View())
	if err != nil {
		t.Fatal(err)
	}
	actual, err := sw.Dump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := flows.Diff(actual, want); !d.Empty() {
		t.Errorf("%s: the switch differs from a full compilation: %v", what, d)
	}
	return l.View()
}

// TestStartFromACopy: the agent stops, the API server goes away, Open vSwitch loses its flows and the agent starts
// again. From the copy it gives the switch all flows that it had; a pod that was attached since, or is attached now,
// stays closed, and DEL works. Then the API server tells what has changed, and that replaces the copy whole.
func TestStartFromACopy(t *testing.T) {
	same := func(*model.Service) {}
	sw := ofswitch.NewFake(flows.Check)
	db, front := shopPod("db", 2), shopPod("front", 3)
	first := started(t, sw, func(l *programmer.Loop) {
		cluster(l, same, db, front)
		l.Submit(state.SetAttachment{Attachment: db})
		l.Submit(state.SetAttachment{Attachment: front})
	})
	before := settled(t, first, sw, "with the API server")
	if len(before.Policies) != 1 || len(before.Services) != 1 {
		t.Fatalf("policies %v, services %v", before.Policies, before.Services)
	}
	held, err := sw.Dump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "objects.json.gz")
	if err := writeCopy(file, "n1", state.NewCopy(before, time.Unix(1, 0))); err != nil {
		t.Fatal(err)
	}
	c, err := readCopy(file, "n1")
	if err != nil {
		t.Fatal(err)
	}

	again, late := ofswitch.NewFake(flows.Check), shopPod("late", 4)
	moved := front // its sandbox was recreated: its address is not the one that the copy's policies name
	moved.ContainerID, moved.IPs = "c-moved", []netip.Addr{addr("10.244.1.9")}
	second := started(t, again, func(l *programmer.Loop) {
		l.Submit(state.SetNode{Node: model.Node{Name: "n1"}}) // the API server got no further
		for _, a := range []model.Attachment{db, front, late} {
			l.Submit(state.SetAttachment{Attachment: a})
		}
		l.Submit(state.Restore{Copy: c})
	})
	view := settled(t, second, again, "from the copy")
	if diff := cmp.Diff(before.Policies, view.Policies, cmpopts.EquateComparable(netip.Addr{},
		netip.Prefix{})); diff != "" {
		t.Errorf("policies -before +from the copy\n%s", diff)
	}
	restored, err := again.Dump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{}
	for _, e := range restored.Flows {
		has[e.Flow.String()] = true
		if strings.Contains(e.String(), "nw_dst=10.244.1.4") {
			t.Errorf("a pod that is not in the copy has the flow %s", e)
		}
	}
	for _, e := range held.Flows {
		if !has[e.Flow.String()] {
			t.Errorf("from the copy the switch lacks %s", e)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := second.Attach(short, moved); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ADD of a pod whose address is new: %v", err)
	}
	for _, a := range []model.Attachment{moved, front} {
		if err := second.Detach(t.Context(), a.Key()); err != nil {
			t.Errorf("DEL: %v", err)
		}
	}
	// What the API server tells before it has told all changes nothing.
	revision := second.View().Revision
	cluster(second, func(s *model.Service) { s.Name = "shop/new" }, db, late)
	second.Submit(state.DeletePolicy{ID: model.NetworkPolicy("shop", "db")})
	if view = settled(t, second, again, "while the API server tells"); len(view.Services) != 1 ||
		view.Services["shop/web"].Name == "" || len(view.Policies) != 1 || view.Revision != revision {
		t.Errorf("services %v, policies %v, revision %d to %d", view.Services, view.Policies, revision, view.Revision)
	}
	second.Submit(state.Synced{})
	view = settled(t, second, again, "when the API server has told all")
	if len(view.Services) != 1 || view.Services["shop/new"].Name == "" || len(view.Policies) != 0 ||
		len(view.Unknown) != 0 || len(view.Attachments) != 2 ||
		view.Transport != model.Tunnel(model.VXLAN) || len(view.ClusterCIDRs) != 1 || view.Revision <= revision ||
		len(view.SelfPath().PodCIDRs) != 1 {
		t.Errorf("view %+v", view)
	}
	// From here on it is a store as any other.
	second.Submit(state.SetJoinedService{Service: web()})
	if view = settled(t, second, again, "later"); len(view.Services) != 2 {
		t.Errorf("services %v", view.Services)
	}
}

// TestCopyAmidRenumbering: an agent that ends while pods keep the node at pod CIDRs that its Node object has no longer
// goes on as before from its copy, and when the API server has told everything: the range changes with the last of
// these pods.
func TestCopyAmidRenumbering(t *testing.T) {
	db := shopPod("db", 2)
	l := heldLoop(t)
	old := netip.MustParsePrefix("10.244.1.0/24")
	renumbered := model.Node{Name: "n1", Created: 1, Addrs: []netip.Addr{addr("172.30.0.1")}, PodCIDRs: []netip.Prefix{
		netip.MustParsePrefix("10.244.9.0/24")}}
	cluster(l, func(*model.Service) {}, db)
	l.Submit(state.SetAttachment{Attachment: db})
	viewed(t, l)
	l.Submit(state.SetNode{Node: renumbered})
	viewed(t, l)
	before := l.View()
	if before.SelfPath().PodCIDRs[0] != old || len(before.NewPodCIDRs) != 1 {
		t.Fatalf("%v, %v", before.SelfPath(), before.NewPodCIDRs)
	}
	file := filepath.Join(t.TempDir(), copyName)
	if err := writeCopy(file, "n1", state.NewCopy(before, time.Now())); err != nil {
		t.Fatal(err)
	}
	c, err := readCopy(file, "n1")
	if err != nil {
		t.Fatal(err)
	}
	for _, synced := range []bool{false, true} {
		l = heldLoop(t)
		l.Submit(state.SetAttachment{Attachment: db})
		l.Submit(state.Restore{Copy: c})
		if synced {
			cluster(l, func(*model.Service) {}, db)
			l.Submit(state.SetNode{Node: renumbered})
			l.Submit(state.Synced{})
		}
		viewed(t, l)
		view := l.View()
		if view.SelfHeld != before.SelfHeld || !slices.Equal(view.NewPodCIDRs, before.NewPodCIDRs) ||
			!slices.Equal(view.SelfPath().PodCIDRs, before.SelfPath().PodCIDRs) {
			t.Errorf("synced %v: %v, held %q, waiting %v; before %q, %v", synced, view.SelfPath(), view.SelfHeld,
				view.NewPodCIDRs, before.SelfHeld, before.NewPodCIDRs)
		}
		l.Submit(state.DeleteAttachment{Key: db.Key()})
		viewed(t, l)
		if view = l.View(); !slices.Equal(view.SelfPath().PodCIDRs, renumbered.PodCIDRs) || view.SelfHeld != "" {
			t.Errorf("synced %v, without the pod: %v, held %q", synced, view.SelfPath(), view.SelfHeld)
		}
	}
}

// TestCopyOfAnEmptiedNode: a Node object that is empty when the API server comes takes nothing from what the copy has.
func TestCopyOfAnEmptiedNode(t *testing.T) {
	l := heldLoop(t)
	cluster(l, func(*model.Service) {})
	viewed(t, l)
	c := state.NewCopy(l.View(), time.Now())
	l = heldLoop(t)
	l.Submit(state.Restore{Copy: c})
	l.Submit(state.SetNode{Node: model.Node{Name: "n1"}})
	l.Submit(state.Synced{})
	viewed(t, l)
	if view := l.View(); len(view.SelfPath().PodCIDRs) != 1 || len(view.Self.Addrs) != 1 ||
		!strings.Contains(view.SelfHeld, "no podCIDRs") {
		t.Errorf("self %+v, held %q", view.Self, view.SelfHeld)
	}
}

// TestCopyIsWholeOrNot: what was damaged, cut off, of another node or version, or open to others is named and not read.
func TestCopyIsWholeOrNot(t *testing.T) {
	l := heldLoop(t)
	cluster(l, func(*model.Service) {}, shopPod("db", 2))
	l.Submit(state.SetAttachment{Attachment: shopPod("db", 2)})
	viewed(t, l)
	want := state.NewCopy(l.View(), time.Unix(7, 0).UTC())
	want.NewPodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.9.0/24")}
	dir := t.TempDir()
	file := filepath.Join(dir, copyName)
	if _, err := readCopy(file, "n1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	if err := writeCopy(file, "n1", want); err != nil {
		t.Fatal(err)
	}
	got, err := readCopy(file, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})); diff != "" {
		t.Errorf("-written +read\n%s", diff)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	unpacked := func() string {
		r, err := gzip.NewReader(bytes.NewReader(whole))
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}()
	packed := func(text string) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		fmt.Fprint(w, text)
		w.Close()
		return b.Bytes()
	}
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-5] ^= 1 // of the checksum
	lines := strings.SplitAfter(unpacked, "\n")
	for name, content := range map[string][]byte{
		"empty":             {},
		"cut off":           whole[:len(whole)/2],
		"a flipped bit":     flipped,
		"not packed":        []byte(unpacked),
		"another version":   packed(strings.Replace(unpacked, `"version":2`, `"version":3`, 1)),
		"without the end":   packed(strings.Join(lines[:len(lines)-2], "")),
		"a record too few":  packed(strings.Join(append(append([]string{}, lines[:2]...), lines[3:]...), "")),
		"an unknown record": packed(lines[0] + "{\"other\":{}}\n" + strings.Join(lines[1:], "")),
		"a bad address":     packed(strings.Replace(unpacked, "172.30.0.1", "172.30.0.1111", 1)),
	} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := readCopy(file, "n1"); err == nil || !strings.Contains(err.Error(), file) || len(c.Nodes) > 0 {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	if err := os.WriteFile(file, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readCopy(file, "n2"); err == nil || !strings.Contains(err.Error(), `of node "n1"`) {
		t.Errorf("of another node: %v", err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readCopy(file, "n1"); err == nil {
		t.Error("a file that others may read was read")
	}
	// What is too large leaves the one from before.
	if _, err := (&bounded{io.Discard, 3}).Write([]byte("four")); err == nil {
		t.Error("the limit does not hold")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory has %v, %v", entries, err)
	}
}

// web is a Service with every kind of address and an endpoint on this node and on another.
func web() model.Service {
	here, there := model.Endpoint{Addr: addr("10.244.1.2"), Port: 8080, Weight: 1}, model.Endpoint{
		Addr: addr("10.244.2.2"), Port: 8080, Weight: 2}
	return model.Service{Name: "shop/web", Affinity: time.Hour, Ports: []model.ServicePort{{
		Name: "http", Protocol: model.TCP, Port: 80, ClusterIP: addr("10.96.0.1"), NodePort: 30080, ExternalLocal: true,
		Elsewhere:   true,
		ExternalIPs: []netip.Addr{addr("192.0.2.9"), addr("192.0.2.1")}, LoadBalancerIPs: []netip.Addr{
			addr("192.0.2.1")}, LoadBalancerSources: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
		Cluster: []model.Endpoint{here, there}, Local: []model.Endpoint{here},
	}}}
}
