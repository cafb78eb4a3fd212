package service_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/service"
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, text := range list {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// TestClaims: a load balancer's address takes precedence over an external IP, and the older Service over the younger.
// Each port of an address is decided separately.
func TestClaims(t *testing.T) {
	one := func(name string, created int64, ports ...model.ServicePort) model.Service {
		for i := range ports {
			ports[i].Protocol = model.TCP
		}
		return model.Service{Name: name, Created: created, Ports: ports}
	}
	web := one("z/web", 2000,
		model.ServicePort{Port: 80, LoadBalancerIPs: addrs("192.0.2.1"), ExternalIPs: addrs("192.0.2.2")})
	thief := one("a/thief", 1000,
		model.ServicePort{Port: 80, ExternalIPs: addrs("192.0.2.1", "192.0.2.2", "192.0.2.3")},
		model.ServicePort{Port: 81, ExternalIPs: addrs("192.0.2.1", "192.0.2.2", "192.0.2.3")})
	c := service.NewClaims()
	c.Set(thief)
	if diff := cmp.Diff(thief, c.Resolve(thief), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("alone the Service has what it asks for (-want +got)\n%s", diff)
	}
	if others := c.Set(web); len(others) != 1 || others[0] != "a/thief" {
		t.Errorf("others: %v", others)
	}
	got := c.Resolve(thief)
	want := one("a/thief", 1000,
		model.ServicePort{Port: 80, ExternalIPs: addrs("192.0.2.2", "192.0.2.3")},
		model.ServicePort{Port: 81, ExternalIPs: addrs("192.0.2.1", "192.0.2.2", "192.0.2.3")})
	want.Lost = []model.LostAddress{{Kind: model.ExternalIP, At: netip.MustParseAddrPort("192.0.2.1:80"),
		Protocol: model.TCP, Winner: "z/web"}}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
		t.Errorf("beside the load balancer's (-want +got)\n%s", diff)
	}
	if got := c.Resolve(web); len(got.Lost) != 1 || got.Lost[0].Winner != "a/thief" ||
		len(got.Ports[0].LoadBalancerIPs) != 1 || len(got.Ports[0].ExternalIPs) != 0 {
		t.Errorf("the older external IP: %+v", got)
	}
	thief.Created = 2000
	c.Set(thief)
	if got := c.Resolve(web); len(got.Lost) != 1 {
		t.Errorf("of one age the first by name has it: %+v", got)
	}
	thief.Created = 3000
	if others := c.Set(thief); len(others) != 1 || others[0] != "z/web" {
		t.Errorf("others: %v", others)
	}
	if got := c.Resolve(web); len(got.Lost) != 0 {
		t.Errorf("the older has it: %+v", got)
	}
	if others := c.Delete("z/web"); len(others) != 1 || others[0] != "a/thief" || len(c.Resolve(thief).Lost) != 0 {
		t.Errorf("when it is gone: %v, %+v", others, c.Resolve(thief))
	}
}

// TestClaimsFollow: after any sequence of changes, exactly one claimant has each address and port, and the Services
// whose result changed are returned.
func TestClaimsFollow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, now, told := service.NewClaims(), map[string]model.Service{}, map[string]string{}
		for range rapid.IntRange(1, 20).Draw(t, "changes") {
			name := rapid.SampledFrom([]string{"a/x", "b/y", "c/z"}).Draw(t, "name")
			var others []string
			if rapid.IntRange(0, 4).Draw(t, "gone") == 0 {
				delete(now, name)
				delete(told, name)
				others = c.Delete(name)
			} else {
				some := func(what string) []netip.Addr {
					return addrs(rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"192.0.2.1", "192.0.2.2"}), 0, 2, rapid.ID).Draw(t,
						what)...)
				}
				s := model.Service{Name: name, Created: int64(rapid.IntRange(1, 2).Draw(t, "created"))}
				for range rapid.IntRange(0, 2).Draw(t, "ports") {
					s.Ports = append(s.Ports,
						model.ServicePort{Protocol: model.TCP, Port: uint16(80 + len(s.Ports)), ExternalIPs: some("external"),
							LoadBalancerIPs: some("balancer")})
				}
				now[name] = s
				others = append(c.Set(s), name)
			}
			for _, o := range others {
				if s, ok := now[o]; ok {
					told[o] = fmt.Sprint(c.Resolve(s))
				}
			}
			fresh := service.NewClaims()
			for _, s := range now {
				fresh.Set(s)
			}
			owners := map[netip.AddrPort]string{}
			for name, s := range now {
				resolved := fresh.Resolve(s)
				if text := fmt.Sprint(resolved); text != told[name] {
					t.Fatalf("%s is %s, and its followers think %s", name, text, told[name])
				}
				for _, p := range resolved.Ports {
					for _, f := range p.Frontends() {
						if f.Kind == model.ClusterIP {
							continue
						}
						if other, taken := owners[f.At]; taken && other != name {
							t.Fatalf("%s and %s both have %s", name, other, f.At)
						}
						owners[f.At] = name
					}
				}
			}
			for name, s := range now {
				for _, p := range s.Ports {
					for _, f := range p.Frontends() {
						if f.Kind != model.ClusterIP && owners[f.At] == "" {
							t.Fatalf("%s claims %s, and no Service has it", name, f.At)
						}
					}
				}
			}
		}
	})
}
