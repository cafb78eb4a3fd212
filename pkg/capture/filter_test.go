package capture_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/bpf"

	"github.com/weft-cni/weft/pkg/capture"
)

func ranges(texts ...string) (list []netip.Prefix) {
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

func ends(protocol capture.Protocol, texts ...string) (list []capture.SocketAddr) {
	for _, text := range texts {
		list = append(list, capture.SocketAddr{Protocol: protocol, At: netip.MustParseAddrPort(text)})
	}
	return list
}

// many are more ranges than the kernel's program tests, with one at the end.
func many(last string) []netip.Prefix {
	var list []netip.Prefix
	for i := range 60 {
		list = append(list, netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/32", i)))
	}
	return append(list, netip.MustParsePrefix(last))
}

// filters have the frames that each wants.
var filters = []struct {
	name   string
	filter capture.Filter
	want   []string
}{
	{"all", capture.Filter{}, slices.Collect(maps.Keys(frames))},
	{"tcp", capture.Filter{Protocol: capture.TCP}, []string{"syn", "data", "tcp6", "options"}},
	{"udp", capture.Filter{Protocol: capture.UDP}, []string{"udp", "unnamed", "first", "later", "first6", "later6", "no tunnel"}},
	{"sctp", capture.Filter{Protocol: capture.SCTP}, []string{"sctp"}},
	{"icmp", capture.Filter{Protocol: capture.ICMP}, []string{"ping", "too big", "icmp", "odd", "nd"}},
	{"port 80", capture.Filter{Port: 80}, []string{"syn", "data", "tcp6", "options", "later", "later6", "later options6"}},
	{"port 53 of TCP", capture.Filter{Port: 53, Protocol: capture.TCP}, nil},
	{"port 53 of UDP", capture.Filter{Port: 53, Protocol: capture.UDP}, []string{"udp", "unnamed", "first", "later", "first6", "later6"}},
	{"client", capture.Filter{Peers: ranges("10.244.0.2/32")},
		[]string{"syn", "data", "udp", "sctp", "ping", "icmp", "odd", "who", "is at", "first", "later", "other"}},
	{"range", capture.Filter{Peers: ranges("fd44:0:0:1::/66"), Protocol: capture.UDP}, []string{"unnamed", "first6", "later6"}},
	{"other range", capture.Filter{Peers: ranges("10.245.0.0/16", "fd45::/16")}, nil},
	{"everything", capture.Filter{Peers: ranges("0.0.0.0/0"), Protocol: capture.SCTP}, []string{"sctp"}},
	{"many ranges", capture.Filter{Peers: many("10.244.1.0/24"), Port: 80}, []string{"syn", "data", "later"}},
	{"Service", capture.Filter{Ends: ends(capture.TCP, "10.96.0.1:80", "10.244.1.3:80", "[fd44:0:0:1::3]:80")},
		[]string{"syn", "data", "tcp6", "options"}},
	{"other port of a Service", capture.Filter{Ends: ends(capture.UDP, "10.244.1.3:54")}, []string{"later"}},
	{"client of a Service", capture.Filter{Ends: ends(capture.UDP, "10.244.1.3:53"), Port: 5000}, []string{"udp", "first", "later"}},
}

// inTunnel are the frames that a capture of tunnels is about, as those within are.
var inTunnel = map[string][]string{"tcp": {"tunnel", "tunnel ipip"}, "port 80": {"tunnel", "tunnel ipip"},
	"range": {"tunnel with options", "tunnel sit"},
	"all": {"tunnel", "tunnel vxlan", "tunnel with options", "tunnel gre", "tunnel gre with options", "tunnel gre of others",
		"tunnel ipip", "tunnel sit"},
	"client": {"tunnel", "tunnel vxlan", "tunnel gre", "tunnel gre with options", "tunnel ipip"},
	"udp":    {"tunnel with options", "tunnel gre with options", "tunnel sit"}}

// TestMatch: each filter wants its frames and no other.
func TestMatch(t *testing.T) {
	for _, tc := range filters {
		for name, f := range frames {
			tunnel := strings.HasPrefix(name, "tunnel")
			want := slices.Contains(tc.want, name)
			if tunnel {
				want = slices.Contains(inTunnel[tc.name], name)
				if _, ok := inTunnel[tc.name]; !ok {
					continue
				}
			}
			if got := tc.filter.Match(capture.Parse(f.frame, tunnel)); got != want {
				t.Errorf("%s: %s wanted %t, want %t", tc.name, name, got, want)
			}
		}
	}
}

// run executes a program as the kernel does.
func run(t *testing.T, f capture.Filter, links []int, within capture.Within) *bpf.VM {
	t.Helper()
	raw, err := f.Program(links, within, 300)
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) > 4096 {
		t.Fatalf("%d instructions", len(raw))
	}
	instructions, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the program cannot be disassembled")
	}
	vm, err := bpf.NewVM(instructions)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// loose are the filters whose program passes more than is wanted: Match decides about the rest.
var loose = map[string]string{
	"many ranges": "more ranges than the program tests", "Service": "ports of Services", "other port of a Service": "ports of Services",
	"client of a Service": "ports of Services",
}

// TestProgram: the program passes every frame that Match wants, and no other but where it is said to be loose, and
// but for ARP and frames with extension headers.
func TestProgram(t *testing.T) {
	for _, tc := range filters {
		vm := run(t, tc.filter, nil, capture.Plain)
		for name, f := range frames {
			n, err := vm.Run(f.frame)
			if err != nil {
				t.Fatal(err)
			}
			want := tc.filter.Match(capture.Parse(f.frame, false))
			if want && n != 300 {
				t.Errorf("%s: the program drops %s", tc.name, name)
			}
			left := slices.Contains([]string{"first6", "later6", "later options6", "options", "who", "is at"}, name) // to Match
			if !want && n != 0 && loose[tc.name] == "" && !left {
				t.Errorf("%s: the program passes %s", tc.name, name)
			}
			for cut := range len(f.frame) { // the kernel drops frames that end early
				if _, err := vm.Run(f.frame[:cut]); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	plain := []string{"syn", "data", "tcp6", "options", "first6", "later6", "later options6"} // with those left to Match
	for within, more := range map[capture.Within][]string{capture.Encapsulated: nil, capture.Either: plain} {
		vm := run(t, capture.Filter{Protocol: capture.TCP}, nil, within)
		for name, f := range frames {
			want := strings.HasPrefix(name, "tunnel") || name == "no tunnel" || slices.Contains(more, name)
			if n, err := vm.Run(f.frame); err != nil || (n > 0) != want {
				t.Errorf("within %d: %s passes %d bytes, %v", within, name, n, err)
			}
		}
	}
}

// TestProgramSize: the largest program fits into the kernel, with links of which there may be more than it tests.
func TestProgramSize(t *testing.T) {
	var wide []netip.Prefix
	for i := range 48 {
		wide = append(wide, netip.MustParsePrefix(fmt.Sprintf("fd44:0:0:%x::/127", i)))
	}
	links := make([]int, 256)
	raw, err := capture.Filter{Peers: wide, Port: 80, Protocol: capture.TCP}.Program(links, capture.Plain, 300)
	if err != nil || len(raw) > 4096 || len(raw) < 1000 {
		t.Errorf("%d instructions, %v", len(raw), err)
	}
	without, err := capture.Filter{}.Program(make([]int, 257), capture.Plain, 300)
	if err != nil || len(without) > 100 {
		t.Errorf("%d instructions for more links than are tested, %v", len(without), err)
	}
}
