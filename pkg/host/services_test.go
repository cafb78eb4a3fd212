package host

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"sigs.k8s.io/knftables"

	"github.com/weft-cni/weft/pkg/model"
)

// TestServiceCostsItsElements: a change of a Service is written without reading the table.
func TestServiceCostsItsElements(t *testing.T) {
	nft := &counting{Interface: knftables.NewFake(knftables.InetFamily, tableName)}
	n := newNAT(nft, nil)
	syncNAT(t, n, withServices())
	nft.lists = 0
	d := withServices()
	d.NodePorts = slices.DeleteFunc(d.NodePorts,
		func(p NodePort) bool { return p == NodePort{Protocol: model.TCP, Port: 30080} })
	d.NodePorts = append(d.NodePorts, NodePort{Protocol: model.SCTP, Port: 30081})
	d.ExternalIPs[0].To = netip.MustParseAddrPort("169.254.87.1:30099")
	d.ExternalIPs = d.ExternalIPs[:2]
	d.sortServices()
	c := &changes{}
	if err := n.sync(t.Context(), c, d, false); err != nil {
		t.Fatal(err)
	}
	want := strings.TrimLeft(`
delete element inet weft node-ports-v4 { tcp . 30080 }
add element inet weft node-ports-v4 { sctp . 30081 : 169.254.87.1 . 30081 }
delete element inet weft external-v4 { 198.51.100.80 . tcp . 80 }
add element inet weft external-v4 { 198.51.100.80 . tcp . 80 : 169.254.87.1 . 30099 }
delete element inet weft external-v6 { 2001:db8:80::1 . tcp . 80 }
`, "\n")
	if diff := cmp.Diff(want, nft.last); diff != "" {
		t.Errorf("transaction (-want +got):\n%s", diff)
	}
	if nft.lists > 0 {
		t.Errorf("%d lists were read from the kernel", nft.lists)
	}
	if want := "nftables map external-v4: 198.51.100.80 . tcp . 80 : 169.254.87.1:30099 added"; !slices.Contains(c.list,
		want) {
		t.Errorf("changes %q lack %q", c.list, want)
	}
}

// TestRememberedTableIsGone: the next write finds that the remembered table was deleted.
func TestRememberedTableIsGone(t *testing.T) {
	fake := knftables.NewFake(knftables.InetFamily, tableName)
	n := newNAT(fake, nil)
	syncNAT(t, n, withServices())
	tx := fake.NewTransaction()
	tx.Delete(&knftables.Table{})
	if err := fake.Run(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	d := withServices()
	d.NodePorts = d.NodePorts[:1]
	if err := n.sync(t.Context(), &changes{}, d, false); err != nil {
		t.Fatal(err)
	}
	right := knftables.NewFake(knftables.InetFamily, tableName)
	syncNAT(t, newNAT(right, nil), d)
	if diff := cmp.Diff(right.Dump(), fake.Dump()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

// TestProtocolNumbers: an nft without /etc/protocols lists numbers.
func TestProtocolNumbers(t *testing.T) {
	for _, s := range sets[2:] {
		for _, d := range s.elements(withServices(), s.is4) {
			e := s.element(d)
			for number, name := range map[string]string{"6": "tcp", "17": "udp", "132": "sctp"} {
				for i := range e.Key {
					if e.Key[i] == name {
						e.Key[i] = number
					}
				}
			}
			if got, ok := s.parse(e); !ok || got != d {
				t.Errorf("%s: %v is read as %v, %t", s.name, e, got, ok)
			}
		}
	}
}

func TestUnusableServices(t *testing.T) {
	d := withServices()
	good := withServices()
	good.sortServices()
	to := netip.MustParseAddrPort("169.254.87.1:30080")
	vip := netip.MustParseAddr("198.51.100.80")
	d.ServicePorts = append(d.ServicePorts, ServicePort{Protocol: model.TCP, Port: 80}, d.ServicePorts[0])
	d.ServicePorts = append(d.ServicePorts, ports("[::ffff:192.0.2.1]:80", "192.0.2.1:0")...)
	d.NodePorts = append(d.NodePorts, NodePort{Protocol: model.TCP}, NodePort{Protocol: "ICMP", Port: 8}, d.NodePorts[0])
	d.ExternalIPs = append(d.ExternalIPs,
		ExternalIP{Addr: vip, Protocol: model.TCP, Port: 81, To: netip.MustParseAddrPort("[fd57:6566:7400::1]:30080")},
		ExternalIP{Addr: vip, Protocol: model.TCP, Port: 81},
		ExternalIP{Addr: vip, Protocol: "ICMP", Port: 81, To: to},
		ExternalIP{Addr: vip, Protocol: model.TCP, Port: 80, To: netip.MustParseAddrPort("169.254.87.1:30081")},
	)
	before := slices.Clone(d.NodePorts)
	got, errs := d.normalized()
	if diff := cmp.Diff(good, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{},
		netip.AddrPort{}), cmpopts.IgnoreUnexported(Desired{})); diff != "" {
		t.Errorf("what is left (-want +got):\n%s", diff)
	}
	if !slices.Equal(before, d.NodePorts) {
		t.Error("the caller's list was changed")
	}
	var text []string
	for _, err := range errs {
		text = append(text, err.Error())
	}
	want := []string{
		"invalid Service port 80/TCP at invalid IP",
		"invalid Service port 80/TCP at ::ffff:192.0.2.1",
		"invalid Service port 0/TCP at 192.0.2.1",
		"invalid node port 8/ICMP",
		"invalid node port 0/TCP",
		"81/ICMP at external address 198.51.100.80 cannot lead to port 30080",
		"80/TCP at 198.51.100.80 cannot lead to both 169.254.87.1:30080 and 169.254.87.1:30081",
		"external address 198.51.100.80 cannot lead to invalid AddrPort",
		"external address 198.51.100.80 cannot lead to [fd57:6566:7400::1]:30080",
	}
	slices.Sort(text)
	slices.Sort(want)
	if diff := cmp.Diff(want, text); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}
