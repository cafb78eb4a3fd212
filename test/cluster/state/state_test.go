package state

import (
	"errors"
	"io/fs"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/test/lab/sandbox"
)

func texts[T interface{ String() string }](values []T) (found []string) {
	for _, v := range values {
		found = append(found, v.String())
	}
	return found
}

func TestPlan(t *testing.T) {
	type view struct {
		Underlay, ControlPlane, Host, Outside, Node3, Beyond, Pods, Services, Kubernetes, DNS []string
		APIServer                                                                             string
	}
	look := func(p Plan) view {
		return view{texts(p.Underlay()), texts(p.ControlPlane()), texts(p.Host()), texts(p.Outside()), texts(p.Node(2)),
			texts(p.Beyond()), texts(p.Pods()), texts(p.Services()),
			texts(p.KubernetesServices()), texts(p.DNS()), p.APIServer()}
	}
	dual := view{
		Underlay:     []string{"172.30.0.0/24", "fd57:6566:74::/64"},
		ControlPlane: []string{"172.30.0.1/24", "fd57:6566:74::1/64"},
		Host:         []string{"172.30.0.3/24", "fd57:6566:74::3/64"},
		Outside:      []string{"172.30.0.2/24", "fd57:6566:74::2/64"},
		Node3:        []string{"172.30.0.13/24", "fd57:6566:74::d/64"},
		Beyond:       []string{"198.51.100.1", "2001:db8:5efe::1"},
		Pods:         []string{"10.244.0.0/16", "fd10:244::/56"},
		Services:     []string{"10.96.0.0/16", "fd10:96::/112"},
		Kubernetes:   []string{"10.96.0.1", "fd10:96::1"},
		DNS:          []string{"10.96.0.10", "fd10:96::a"},
		APIServer:    "https://172.30.0.1:6443",
	}
	only := func(i int, api string) view {
		v := dual
		v.APIServer = api
		for field := range reflect.ValueOf(&v).Elem().NumField() {
			if list, ok := reflect.ValueOf(v).Field(field).Interface().([]string); ok {
				reflect.ValueOf(&v).Elem().Field(field).Set(reflect.ValueOf(list[i : i+1]))
			}
		}
		return v
	}
	for family, want := range map[IPFamily]view{
		Dual: dual,
		IPv4: only(0, "https://172.30.0.1:6443"),
		IPv6: only(1, "https://[fd57:6566:74::1]:6443"),
	} {
		if diff := cmp.Diff(want, look(Plan{Name: "weft", Family: family})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", family, diff)
		}
	}
}

// TestPlansDoNotOverlap looks at all addresses that different members and clusters use in one place.
func TestPlansDoNotOverlap(t *testing.T) {
	seen := map[string]string{}
	claim := func(what, owner string) {
		if other, taken := seen[what]; taken {
			t.Errorf("%s belongs to %s and %s", what, other, owner)
		}
		seen[what] = owner
	}
	for _, name := range []string{"weft", "other"} {
		p := Plan{Name: name, Family: Dual}
		members := map[string][]netip.Prefix{"host": p.Host(), "outside": p.Outside()}
		for i := range MaxNodes {
			members[NodeName(i)] = p.Node(i)
			claim(p.NodeMAC(i).String(), name+" "+NodeName(i))
			if mac := p.NodeMAC(i); mac[0]&3 != 2 {
				t.Errorf("MAC %s is not a local unicast address", mac)
			}
		}
		for member, prefixes := range members {
			for i, prefix := range prefixes {
				claim(prefix.Addr().String(), name+" "+member)
				if !p.Underlay()[i].Contains(prefix.Addr()) {
					t.Errorf("%s of %s is not on the underlay %s", prefix, member, p.Underlay()[i])
				}
			}
		}
	}
}

func TestParseIPFamily(t *testing.T) {
	if f, err := ParseIPFamily("dual"); f != Dual || err != nil {
		t.Errorf("ParseIPFamily(dual) = %q, %v", f, err)
	}
	if _, err := ParseIPFamily("ipv5"); err == nil {
		t.Error("ipv5 is accepted")
	}
}

func TestSaveAndLoad(t *testing.T) {
	want := Cluster{
		Plan: Plan{Name: "weft", Family: Dual}, Dir: t.TempDir(), Created: time.Unix(1, 0).UTC(), Tunnel: "geneve",
		Outside: Outside{Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.2")}},
		Nodes: []Node{{Name: "node1", Sandbox: sandbox.Node{Group: "weft", Name: "node1", Holder: sandbox.Process{PID: 1,
			Start: 2}}}},
		Processes: map[string]sandbox.Process{"etcd": {PID: 3, Start: 4}},
	}
	if _, err := Load(want.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of an empty directory: %v; want fs.ErrNotExist", err)
	}
	if err := want.Save(); err != nil {
		t.Fatal(err)
	}
	got, err := Load(want.Dir)
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); err != nil || diff != "" {
		t.Errorf("Load (-want +got): %v\n%s", err, diff)
	}
	if n, err := got.Find("node1"); err != nil || n.Holder.PID != 1 {
		t.Errorf("Find(node1) = %+v, %v", n, err)
	}
	if _, err := got.Find(OutsideName); err != nil {
		t.Errorf("Find(outside): %v", err)
	}
	if _, err := got.Find("node2"); err == nil {
		t.Error("Find(node2) found something")
	}
}
