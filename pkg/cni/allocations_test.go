package cni

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/model"
)

func key(i int) model.AttachmentKey {
	return model.AttachmentKey{ContainerID: fmt.Sprintf("c%d", i), IfName: "eth0"}
}

func cidrs(s ...string) (list []netip.Prefix) {
	for _, c := range s {
		list = append(list, netip.MustParsePrefix(c))
	}
	return list
}

func codeOf(err error) uint {
	if err == nil {
		return 0
	}
	return toCNI(err).Code
}

var web = model.PodRef{Namespace: "default", Name: "web"}

// TestAllocateNothingTwice runs random sequences of ADDs, DELs and restarts.
func TestAllocateNothingTwice(t *testing.T) {
	ranges := cidrs("10.0.0.0/28", "fd00::/124")
	// 16 addresses without the network address, the gateway and the broadcast address.
	const room = 13
	rapid.Check(t, func(t *rapid.T) {
		b := newAllocations()
		have := map[model.AttachmentKey]model.Attachment{}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				k := key(rapid.IntRange(0, 30).Draw(t, "container"))
				att, err := b.reserve(k, web, ranges, model.MAC{})
				_, twice := have[k]
				switch {
				case twice && codeOf(err) != ErrAlreadyAttached:
					t.Fatalf("second ADD of %s: %v", k, err)
				case !twice && len(have) >= room && codeOf(err) != ErrPoolExhausted:
					t.Fatalf("ADD with a full pool: %v", err)
				case !twice && len(have) < room && err != nil:
					t.Fatalf("ADD with %d attachments: %v", len(have), err)
				}
				if err == nil {
					have[k] = att
				}
			},
			"del": func(t *rapid.T) {
				k := key(rapid.IntRange(0, 30).Draw(t, "container"))
				b.release(k)
				delete(have, k)
			},
			"restart": func(t *rapid.T) {
				b = newAllocations()
				for _, att := range have {
					if err := b.load(att); err != nil {
						t.Fatal(err)
					}
				}
			},
			"": func(t *rapid.T) {
				used := map[any]model.AttachmentKey{}
				for k, att := range have {
					if got, ok := b.get(k); !ok || fmt.Sprint(got) != fmt.Sprint(att) {
						t.Fatalf("%s became %v", k, got)
					}
					if len(att.IPs) != 2 || !ranges[0].Contains(att.IPs[0]) || !ranges[1].Contains(att.IPs[1]) ||
						att.OFPort < model.PortPodMin || att.OFPort > model.PortPodMax {
						t.Fatalf("%+v", att)
					}
					for _, v := range []any{att.IPs[0], att.IPs[1], att.OFPort, att.HostIfName, att.MAC} {
						if other, ok := used[v]; ok {
							t.Fatalf("%v was given to %s and %s", v, other, k)
						}
						used[v] = k
					}
				}
				for _, c := range ranges {
					for _, ip := range []netip.Addr{c.Addr(), model.GatewayAddr(c)} {
						if _, ok := used[ip]; ok {
							t.Fatalf("a pod got %s", ip)
						}
					}
				}
				if _, full := b.exhausted(ranges); full != (len(have) == room) {
					t.Fatalf("exhausted %t with %d attachments", full, len(have))
				}
			},
		})
	})
}

func TestAllocationsRotates(t *testing.T) {
	b := newAllocations()
	ranges := cidrs("10.0.0.0/29")
	var ips []string
	var ports []uint32
	for i := range 7 {
		att, err := b.reserve(key(i), web, ranges, model.MAC{})
		if err != nil {
			t.Fatal(err)
		}
		ips, ports = append(ips, att.IPs[0].String()), append(ports, att.OFPort)
		b.release(key(i))
	}
	if got := fmt.Sprint(ips, ports); got !=
		"[10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6 10.0.0.2 10.0.0.3] [16 17 18 19 20 21 22]" {
		t.Error(got)
	}
	// After a restart, allocation continues above the highest address in use.
	b = newAllocations()
	if err := b.load(model.Attachment{ContainerID: "x", IfName: "eth0", HostIfName: "x-1", OFPort: model.PortPodMax,
		IPs: []netip.Addr{netip.MustParseAddr("10.0.0.4")}}); err != nil {
		t.Fatal(err)
	}
	att, err := b.reserve(key(1), web, ranges, model.MAC{})
	if err != nil || att.IPs[0].String() != "10.0.0.5" || att.OFPort != model.PortPodMin {
		t.Errorf("%+v, %v", att, err)
	}
}

func TestAllocationsFreesTheFirstFamilyWhenTheSecondIsFull(t *testing.T) {
	b := newAllocations()
	ranges := cidrs("10.0.0.0/24", "fd00::/126") // two IPv6 addresses besides the gateway
	for i := range 2 {
		if _, err := b.reserve(key(i), web, ranges, model.MAC{}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := b.reserve(key(9), web, ranges, model.MAC{})
	if codeOf(err) != ErrPoolExhausted || !strings.Contains(err.Error(), "fd00::/126") || len(b.ips) != 4 ||
		len(b.entries) != 2 {
		t.Errorf("%v; %d addresses, %d entries", err, len(b.ips), len(b.entries))
	}
	if _, err := b.reserve(key(9), web, cidrs("10.0.0.0/31"), model.MAC{}); codeOf(err) != ErrPoolExhausted {
		t.Errorf("a range without room: %v", err)
	}
}

func TestAllocationsLoadsConflicts(t *testing.T) {
	b := newAllocations()
	ip := []netip.Addr{netip.MustParseAddr("10.0.0.4")}
	one := model.Attachment{ContainerID: "one", IfName: "eth0", HostIfName: "one-1", OFPort: 16, IPs: ip}
	two := model.Attachment{ContainerID: "two", IfName: "eth0", HostIfName: "two-1", OFPort: 16, IPs: ip}
	if err := b.load(one); err != nil {
		t.Fatal(err)
	}
	err := b.load(two)
	if err == nil || !strings.Contains(err.Error(), "one/eth0 and two/eth0 are both recorded with address 10.0.0.4") ||
		!strings.Contains(err.Error(), "OpenFlow port 16") {
		t.Errorf("%v", err)
	}
	if len(b.keys()) != 2 {
		t.Errorf("%v", b.keys())
	}
}

func TestHostIfName(t *testing.T) {
	for _, tc := range []struct{ pod, want string }{
		{"web-5d8f9c6b7d-x2x4z", "web-5d8f-"},
		{"web.0", "web-0-"},
		{"verylong-name", "verylong-"},
		{"abcdefg-h", "abcdefg-"},
		{"a", "a-"},
	} {
		name := hostIfName(model.PodRef{Name: tc.pod}, key(1), 0)
		if !strings.HasPrefix(name, tc.want) || len(name) != len(tc.want)+6 || len(name) > 15 {
			t.Errorf("%s: %s", tc.pod, name)
		}
	}
	if hostIfName(web, key(1), 0) == hostIfName(web, key(1), 1) ||
		hostIfName(web, key(1), 0) == hostIfName(web, key(2), 0) {
		t.Error("names collide")
	}
	// A collision of names is resolved.
	b := newAllocations()
	b.names[hostIfName(web, key(1), 0)] = key(7)
	att, err := b.reserve(key(1), web, cidrs("10.0.0.0/24"), model.MAC{})
	if err != nil || att.HostIfName != hostIfName(web, key(1), 1) {
		t.Errorf("%+v, %v", att, err)
	}
}

func TestMACFor(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::5")
	if got := macFor([]netip.Addr{v6, v4}).String(); got != "0a:58:0a:01:02:03" {
		t.Error(got)
	}
	a, b := macFor([]netip.Addr{v6}), macFor([]netip.Addr{v6.Next()})
	if a == b || a[0] != 0x0a || a[1] != 0x58 {
		t.Error(a, b)
	}
}

// TestAllocationsFreedLastComesLast: an address that is freed just before the rotation reaches it is not the next one.
func TestAllocationsFreedLastComesLast(t *testing.T) {
	b := newAllocations()
	ranges := cidrs("10.0.0.0/29", "fd00::/64") // five addresses for pods, and very many
	reserve := func(i int) string {
		t.Helper()
		att, err := b.reserve(key(i), web, ranges, model.MAC{})
		if err != nil {
			t.Fatal(err)
		}
		return att.IPs[0].String()
	}
	for i := range 5 {
		reserve(i) // 10.0.0.2 to .6, of which .6 was given last
	}
	for _, i := range []int{1, 3, 0} {
		b.release(key(i))
	}
	// The rotation would allocate .2 next, which was freed last.
	if got := strings.Join([]string{reserve(10), reserve(11), reserve(12)}, " "); got != "10.0.0.3 10.0.0.5 10.0.0.2" {
		t.Error(got)
	}
	if _, err := b.reserve(key(13), web, ranges, model.MAC{}); codeOf(err) != ErrPoolExhausted {
		t.Errorf("%v", err)
	}
	// When all addresses were allocated before, the one that was freed first is next; otherwise a fresh one.
	b.release(key(11))
	b.release(key(4))
	if got := reserve(20) + " " + reserve(21); got != "10.0.0.5 10.0.0.6" {
		t.Error(got)
	}
	// The number of remembered addresses is bounded.
	b = newAllocations()
	ranges = cidrs("fd00::/64")
	for i := range 2 * maxFreed {
		reserve(i)
		b.release(key(i))
	}
	if len(b.freed.order) != maxFreed || len(b.freed.has) != maxFreed {
		t.Errorf("%d and %d freed addresses are remembered", len(b.freed.order), len(b.freed.has))
	}
}

// TestChanging: an attachment's port is changing until its ADD has succeeded, and from the beginning of its DEL until
// nothing of it is left, also when that fails on the way.
func TestChanging(t *testing.T) {
	s := &Server{allocations: newAllocations()}
	if s.Changing("none") {
		t.Error("a port that no attachment has is changing")
	}
	att, err := s.allocations.reserve(key(1), web, cidrs("10.244.1.0/24"), model.MAC{})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name string
		do   func()
		want bool
	}{
		{"reserved", func() {}, true},
		{"added", func() { s.allocations.markComplete(att) }, false},
		{"being removed", func() { s.allocations.markRemoving(att.Key()) }, true},
		{"removed", func() { s.allocations.release(att.Key()) }, false},
	} {
		step.do()
		if got := s.Changing(att.HostIfName); got != step.want {
			t.Errorf("%s: changing %t, want %t", step.name, got, step.want)
		}
	}
}
