//go:build integration

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/golden"
	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
)

// matrixVariable asks for the whole matrix; without it, the test takes the quick ones of matrixRows, in a dual-stack
// lab.
const matrixVariable = "WEFT_MATRIX"

// matrixPage is what the matrix generates.
const matrixPage = "../../docs/matrix.md"

// matrixRow is a combination of settings, and the paths that it makes.
type matrixRow struct {
	name  string
	quick bool
	// The settings.
	transport model.Mode
	tunnel    model.Encapsulation
	routes    model.DirectRoutes
	// near and far are the modes between nodes of one subnet and of two; "" for not at all.
	near, far model.Mode
}

// matrixRows are in the order in which the lab changes from one to the next, first in clear and then encrypted. Those
// of IPIP are for kernels that have it.
var matrixRows = []matrixRow{
	{"Geneve", false, model.ModeOverlay, model.Geneve, model.RoutesNode, model.ModeOverlay, model.ModeOverlay},
	{"VXLAN", false, model.ModeOverlay, model.VXLAN, model.RoutesNode, model.ModeOverlay, model.ModeOverlay},
	{"GRE", false, model.ModeOverlay, model.GRE, model.RoutesNode, model.ModeOverlay, model.ModeOverlay},
	{"IPIP", true, model.ModeOverlay, model.IPIP, model.RoutesNode, model.ModeIPIP, model.ModeIPIP},
	{"hybrid with IPIP", false, model.ModeHybrid, model.IPIP, model.RoutesNode, model.ModeDirect, model.ModeIPIP},
	{"direct", false, model.ModeDirect, model.GRE, model.RoutesNode, model.ModeDirect, ""},
	{"direct, routes of the network", false, model.ModeDirect, model.GRE, model.RoutesNone, model.ModeDirect,
		model.ModeDirect},
	{"hybrid", true, model.ModeHybrid, model.Geneve, model.RoutesNode, model.ModeDirect, model.ModeOverlay},
}

// TestMatrix: every transport works with and without encryption, in every address family, for every kind of
// destination, with and without policies: small packets, fragments and streams arrive, with the source address that
// policies are written for, and what a policy denies does not. A combination that cannot work is refused with a reason.
//
// A lab for each family changes from one combination to the next while it runs. docs/matrix.md has the outcome.
func TestMatrix(t *testing.T) {
	whole := os.Getenv(matrixVariable) != ""
	families, ipip := []lab.Family{lab.Dual}, hasIPIP(t)
	if whole {
		families = []lab.Family{lab.IPv4, lab.IPv6, lab.Dual}
	}
	for _, family := range families {
		t.Run(string(family), func(t *testing.T) {
			m := upMatrix(t, family)
			section := matrixColumns
			for _, encrypted := range []bool{false, true} {
				for _, row := range matrixRows {
					if (whole || row.quick) && (ipip || row.tunnel != model.IPIP) {
						line := m.row(t, row, encrypted)
						t.Log(line)
						section += line
					}
				}
			}
			if whole && labtest.Datapath() == config.DatapathNetdev && !t.Failed() {
				golden.File(t, matrixPage, matrixText(t, family, section))
			}
		})
	}
}

// matrixText is the page with a family's section, and the others as they are.
func matrixText(t *testing.T, family lab.Family, section string) string {
	t.Helper()
	page, err := os.ReadFile(matrixPage)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	text := matrixHead
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6, lab.Dual} {
		heading := "\n## " + familyTitle[f] + "\n"
		made := section
		if f != family {
			_, rest, _ := strings.Cut(string(page), heading)
			made, _, _ = strings.Cut(rest, "\n## ")
		}
		text += heading + made
	}
	return text + refusals(t)
}

var familyTitle = map[lab.Family]string{lab.IPv4: "IPv4", lab.IPv6: "IPv6", lab.Dual: "Dual stack"}

const matrixHead = `# Which transports work with what
<!-- Made by: make matrix-update -->

Every combination of a transport, encryption, an address family, a kind of destination and policies, as packets found
it in a lab with the userspace datapath and an underlay whose MTU is 1,500: node1 and node2 are in one subnet, node3 in
another, with a router between them. The lab changes from one row to the next while it runs.
[transports.md](transports.md) explains the settings. This lab's kernel has no IPIP: an emulated machine's
has it, where TestIPIP and this test, with rows for it, run (make kernel-test-all).

A cell has how many probes passed, and how many a NetworkPolicy denied, all as expected. Half of the servers are
isolated by a policy, half by none. Each probe is a TCP stream of 20,000 bytes each way, or a UDP datagram of 64 bytes
or, in fragments, of 4,000, and its echo, or a ping of exactly the pods' MTU that must not be fragmented. The source
address, as the server and so its policy sees it, is the same in all rows, with
[one exception](transports.md#who-may-send). Encryption is WireGuard, strict. To external IPs and load balancers'
addresses, a small datagram comes before the one in fragments
([services.md](services.md#fragments-on-the-userspace-datapath)).

*Sizes* are packets of 13 sizes from 1,280 to 9,000 bytes, at and around every limit: from a pod and from a node to
pods of other nodes, and from a host outside by a node port. None is lost in silence. Each arrives, whole or in
fragments. One that must not be fragmented and is larger than the pods' MTU is refused by the sender's own kernel. A
host outside, whose link has a larger MTU than the path, gets an ICMP error, and its next packet arrives.
`

const matrixColumns = `
| Transport | Encryption | Pods' MTU | Same subnet | Other subnet | Pod | ClusterIP | Node port | External IP | Load balancer | World | Sizes |
|---|---|---|---|---|---|---|---|---|---|---|---|
`

// refusals are the combinations that do not exist, with what the agent says of them.
func refusals(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	text.WriteString("\n## Refused\n| Settings | Reason |\n|---|---|\n")
	for _, settings := range []string{
		"transport: hybrid\ndirectRoutes: none\n", "tunnelType: stt\n", "encryption: ipsec\n",
		"encryption: wireguard\nwireguardPort: 6081\n",
	} {
		_, err := config.Parse([]byte(settings))
		if err == nil {
			t.Errorf("%q is accepted", settings)
			continue
		}
		fmt.Fprintf(&text, "| `%s` | %s |\n", strings.ReplaceAll(strings.TrimSpace(settings), "\n", "`, `"),
			strings.ReplaceAll(err.Error(), "\n", " "))
	}
	return text.String() + "| `tunnelType: gre`, `datapath: system`, nodes with IPv6 InternalIPs first | " +
		"`weftctl status`: the kernel datapath has no GRE over IPv6 |\n| `transport: direct`, `directRoutes: node`, nodes of two subnets | " +
		"`weftctl status`: node node3 is in the subnet …, this node in … |\n"
}

// row changes the lab to a combination, probes everything, and returns the line of the page.
func (m matrix) row(t *testing.T, r matrixRow, encrypted bool) string {
	t.Helper()
	begin := time.Now()
	encryption := config.EncryptionNone
	if encrypted {
		encryption = config.EncryptionWireGuard
		r.near, r.far = model.ModeWireGuard, model.ModeWireGuard
	}
	settings := []struct{ key, value string }{{"transport", string(r.transport)}, {"tunnelType", string(r.tunnel)},
		{"directRoutes", string(r.routes)}, {"encryption", string(encryption)}}
	for _, n := range m.nodes {
		m.configureSet(t, n, settings)
	}
	if encrypted {
		for name := range m.nodes {
			m.wantDevice(t, name)
		}
	}
	m.wantRow(t, r)
	changed := time.Since(begin)
	counts := m.probeAll(t, r)
	t.Logf("%s, encryption %s: changed in %.1f s, probed in %.1f s", r.name, encryption, changed.Seconds(),
		(time.Since(begin) - changed).Seconds())
	path := func(mode model.Mode) string {
		if mode == "" {
			return "refused"
		}
		return string(mode)
	}
	line := fmt.Sprintf("| %s | %s | %d | %s | %s |", r.name, encryption, m.rowMTU(r), path(r.near), path(r.far))
	for _, kind := range matrixKinds {
		c := counts[kind]
		if kind == "sizes" {
			line += fmt.Sprintf(" %d passed, %d too large |", c.passed, c.tooLarge)
		} else {
			line += fmt.Sprintf(" %d passed, %d denied |", c.passed, c.denied)
		}
	}
	return line + "\n"
}

// rowMTU is the largest MTU of pods with which packets on all paths of a row fit into the underlay.
func (m matrix) rowMTU(r matrixRow) int {
	most := 0
	for _, mode := range []model.Mode{r.near, r.far} {
		if mode != "" {
			most = max(most, model.Transport{Mode: mode, Encapsulation: r.tunnel}.Overhead(m.nodes["node1"].Addrs[0]))
		}
	}
	return 1500 - most
}

// wantRow waits until all nodes and pods have the settings of a row.
func (m matrix) wantRow(t *testing.T, r matrixRow) {
	t.Helper()
	for name := range m.nodes {
		testenv.Eventually(t, 30*time.Second, func() error {
			s := m.status(t, name)
			if s.Transport != r.transport || s.Tunnel != r.tunnel || len(s.Nodes) != len(m.nodes)-1 ||
				s.Flows.Programmed < s.Flows.Desired || s.MTU != m.rowMTU(r) {
				return fmt.Errorf("%s has transport %s, tunnel %s, MTU %d, %+v, want %+v with %d", name, s.Transport, s.Tunnel,
					s.MTU, s.Flows.Progress, r, m.rowMTU(r))
			}
			for _, n := range s.Nodes {
				want := r.near
				if (name == "node3") != (n.Name == "node3") {
					want = r.far
				}
				if n.Transport != want || want == "" && !strings.Contains(n.Unreachable, "is in the subnet") {
					return fmt.Errorf("%s sends to %s by %q, want %q: %s%s", name, n.Name, n.Transport, want, n.Why,
						n.Unreachable)
				}
			}
			return nil
		})
	}
	mtu := fmt.Sprint(m.rowMTU(r))
	for name := range m.pods {
		testenv.Eventually(t, 30*time.Second, func() error {
			if got := m.Run(name, "cat", "/sys/class/net/eth0/mtu"); got != mtu {
				return fmt.Errorf("the MTU of pod %s is %s, want %s", name, got, mtu)
			}
			return nil
		})
	}
}
