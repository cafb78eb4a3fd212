package flows_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/weft-cni/weft/internal/testing/golden"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// docs/pipeline.md says what the code says: it is made from the tables, the constants' comments and compiled flows.
func TestDocumentation(t *testing.T) {
	golden.File(t, "../../docs/pipeline.md", string(document(t)))
}

// The document's example: a node with one pod, and one other node.
var (
	exampleSelf = model.Node{
		Name: "node1", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.11")}, PodCIDRs: []netip.Prefix{
			netip.MustParsePrefix("10.244.0.0/24")},
	}
	exampleNode = model.Node{
		Name: "node2", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.12")}, PodCIDRs: []netip.Prefix{
			netip.MustParsePrefix("10.244.1.0/24")},
	}
	examplePod = model.Attachment{
		ContainerID: "c1", IfName: "eth0", Pod: model.PodRef{Namespace: "shop", Name: "web"}, HostIfName: "web-123456",
		OFPort: model.PortPodMin,
		MAC:    model.MAC{0x0a, 0x58, 10, 244, 0, 2}, IPs: []netip.Addr{netip.MustParseAddr("10.244.0.2")},
	}
)

// examplePolicy lets two pods elsewhere, and a range, reach some ports of the example's pod, which may ask no more than
// DNS.
var examplePolicy = func() model.Policy {
	pod := []netip.Addr{examplePod.IPs[0]}
	return model.Policy{
		ID: policyID("shop/web"),
		Ingress: &model.PolicySide{Pods: pod, Rules: []model.PolicyRule{{ID: 4711, Pods: pod,
			Peers: []netip.Prefix{netip.MustParsePrefix("10.244.1.5/32"), netip.MustParsePrefix("10.244.2.5/32"),
				netip.MustParsePrefix("192.0.2.0/24")},
			Ports: []model.PortMatch{{Protocol: model.TCP, Port: 80, Mask: 0xffff}, {Protocol: model.TCP, Port: 443,
				Mask: 0xffff}, {Protocol: model.TCP, Port: 8080, Mask: 0xfff8}}}}},
		Egress: &model.PolicySide{Pods: pod, Rules: []model.PolicyRule{{ID: 4712, Pods: pod, AnyPeer: true,
			Ports: []model.PortMatch{{Protocol: model.UDP, Port: 53, Mask: 0xffff}}}}},
	}
}()

// exampleClusterPolicy lets the pod ask a cloud for nothing, but for DNS at its address.
var exampleClusterPolicy = func() model.Policy {
	pod, peers := []netip.Addr{examplePod.IPs[0]}, []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32")}
	return model.Policy{
		ID: model.ClusterNetworkPolicy("no-metadata"), Tier: model.AdminTier, Rank: 640,
		Egress: &model.PolicySide{Pods: pod, Rules: []model.PolicyRule{
			{ID: 4713, Index: 0, Verdict: model.Pass, Pods: pod, Peers: peers,
				Ports: []model.PortMatch{{Protocol: model.UDP, Port: 53, Mask: 0xffff}}},
			{ID: 4714, Index: 1, Verdict: model.Deny, Pods: pod, Peers: peers, AnyPort: true}}},
	}
}()

// exampleService has an endpoint on each of the two nodes, and a load balancer that some clients may use.
var exampleService = func() model.Service {
	here := model.Endpoint{Addr: examplePod.IPs[0], Port: 8080, Weight: 1}
	there := model.Endpoint{Addr: netip.MustParseAddr("10.244.1.5"), Port: 8080, Weight: 1}
	return model.Service{Name: "shop/web", Algorithm: model.HashConnection, Ports: []model.ServicePort{{
		Name: "http", Protocol: model.TCP, Port: 80, ClusterIP: netip.MustParseAddr("10.96.0.80"),
		LoadBalancerIPs: []netip.Addr{netip.MustParseAddr("192.0.2.80")}, LoadBalancerSources: []netip.Prefix{
			netip.MustParsePrefix("198.51.100.0/24")},
		Cluster: []model.Endpoint{here, there}, Elsewhere: true,
	}, {
		Name: "admin", Protocol: model.TCP, Port: 81, ClusterIP: netip.MustParseAddr("10.96.0.80"), InternalLocal: true,
		Cluster: []model.Endpoint{there}, Elsewhere: true,
	}}}
}()

// docWriter builds the document.
type docWriter struct {
	bytes.Buffer
	t     *testing.T
	flows []flows.Flow // the example's, in a reader's order
	// kernel are those that the example has only with the kernel's datapath, or has differently.
	kernel []flows.Flow
	// staging are those that it has only while a policy is staged, or has differently.
	staging []flows.Flow
}

func (d *docWriter) line(format string, args ...any) { fmt.Fprintf(d, format+"\n", args...) }

const docPreamble = `<!-- Made from pkg/flows by: go test ./pkg/flows -run TestDocumentation -update -->
# Pipeline

The flow tables of the bridge ''weft'', as every node has them. A flow may match, do and go to only what its table
declares here; every flow that Weft compiles is checked against it. A packet only goes forward: to a table with a higher number.

The table names are in OVSDB, so that Open vSwitch's tools show them:

    ovs-ofctl --names -O OpenFlow15 dump-flows weft table=Forwarding

''weftctl flows'' shows the same flows with their packet counters and with the Kubernetes objects that they exist for.

## How a packet travels
Pods send everything to the *router MAC*; the switch routes by IP address.

* **Pod to pod on one node**: Classifier knows the port, ARPND passes what is not a question for an address, SpoofGuard checks that MAC
  and address are the pod's own, Forwarding finds the receiver's address, Output sends to its port.
* **Pod to pod on another node**: the same, but Forwarding finds the pod CIDR of the other node, sets that node's address as the tunnel's
  destination, and Output sends to the tunnel port. There Classifier knows the tunnel port, SpoofGuard checks that the inner source
  belongs to the node that sent the tunnel packet, Forwarding finds the receiver's address.
* **Pod to anything else**: Forwarding sends it to the gateway ''weft0'', where the node's kernel routes and masquerades it.
* **Node to pod**: it comes in from the gateway, which may send from any address.
* **To a Service**: Conntrack finds no connection, so ServiceLB looks at address and port. The Service's group chooses an endpoint and translates the
  destination to it; from there on the packet is one to a pod. Its later packets are translated in Conntrack, and so are the replies.
* **A reply**: ConntrackState sends it straight to Forwarding while its connection has the mark of what the policies allow. The policies'
  tables see the original direction only; a packet that they deny takes the mark away.
* **While a policy is staged**, PolicyEntry first sends a copy of each packet through the tables ''Preview…'', where the staged policies
  count beside the others. No packet leaves them.
* **A datagram in fragments**, with the userspace datapath: only the first fragment has ports. The policies judge that one; the others wait for it in
  Commit. ServiceLB knows the others by the address, where that has one port.
* **ARP requests and neighbour solicitations**: ARPND checks that they are in the asker's own name, ARPNDReply turns them into the answer and
  sends them back to the port they came from.
`

func document(t *testing.T) []byte {
	t.Helper()
	example := model.Snapshot{
		Self: exampleSelf, Transport: model.Tunnel(model.Geneve),
		Nodes:       map[string]model.Node{exampleNode.Name: exampleNode},
		Attachments: map[model.AttachmentKey]model.Attachment{examplePod.Key(): examplePod},
		Services:    map[string]model.Service{exampleService.Name: exampleService},
		Policies: map[model.PolicyID]model.Policy{examplePolicy.ID: examplePolicy,
			exampleClusterPolicy.ID: exampleClusterPolicy},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
	}
	desired, err := flows.Compile(&example)
	if err != nil {
		t.Fatal(err)
	}
	different := func(s model.Snapshot) (list []flows.Flow) {
		other, err := flows.Compile(&s)
		if err != nil {
			t.Fatal(err)
		}
		for key, f := range other.Flows {
			if desired.Flows[key] != f {
				list = append(list, f)
			}
		}
		return list
	}
	kernel, staging := example, example
	kernel.KernelDatapath = true
	dryRun := examplePolicy
	dryRun.ID.Name, dryRun.Staged = "next-week", true
	staging.Policies = map[model.PolicyID]model.Policy{dryRun.ID: dryRun}
	d := &docWriter{t: t, kernel: different(kernel), staging: different(staging)}
	for _, f := range desired.Flows {
		d.flows = append(d.flows, f)
	}
	for _, list := range [][]flows.Flow{d.flows, d.kernel, d.staging} {
		slices.SortFunc(list, func(a, b flows.Flow) int { return a.Key.Compare(b.Key) })
	}

	d.WriteString(strings.ReplaceAll(docPreamble, "''", "`"))
	d.tables()
	d.kernelDatapath()
	d.example()
	d.registers()
	d.portsAndAddresses()
	d.cookies()
	d.reasons()
	return d.Bytes()
}

// tables gives each table's contract, and the flows in it that every node has.
func (d *docWriter) tables() {
	d.line("\n## Tables")
	d.line("In the lists of flows, the number is the priority: of the flows of a table that match a packet, the one " +
		"with the highest is taken.\n")
	d.line("| Number | Name | Goes on to |\n|---|---|---|")
	for _, table := range flows.Pipeline {
		d.line("| %d | [%s](#%s) | %s |", table.ID, table.Name, strings.ToLower(table.Name), orNone(tableNames(table.Next),
			", "))
	}
	for _, table := range flows.Pipeline {
		d.line("\n### %s", table.Name)
		d.line("Table %d. %s\n", table.ID, table.Doc)
		d.line("* Matches: %s", orNone(quoted(table.Match), ", "))
		d.line("* Actions: %s", strings.Join(quoted(append(slices.Clone(table.Actions), "drop")), ", "))
		d.line("* Goes on to: %s", orNone(tableNames(table.Next), ", "))
		own := func(f flows.Flow) bool { return f.Table == table.ID && f.Owner.Kind == model.KindPipeline }
		if !strings.HasPrefix(table.Name, "Preview") {
			d.line("\nEvery node has:\n")
			d.block(own, false)
		}
		if slices.ContainsFunc(d.staging, own) {
			d.line("\nWhile a policy about its pods is staged:\n")
			d.blockOf(d.staging, own, false)
		}
	}
}

// example gives the flows that exist because of objects.
func (d *docWriter) example() {
	d.line("\n## Example")
	d.line("%s has the address %s and the pod CIDR %s. What follows from the node itself:\n", exampleSelf.Name,
		exampleSelf.Addrs[0], exampleSelf.PodCIDRs[0])
	d.block(func(f flows.Flow) bool { return f.Owner == model.SelfOwner }, true)
	d.line("\nOn it runs the pod `%s`, at port %d with the address %s:\n", examplePod.Pod, examplePod.OFPort,
		examplePod.IPs[0])
	d.block(func(f flows.Flow) bool { return f.Owner == model.PodOwner(examplePod) }, true)
	d.line("\nThe Service `%s` has the address %s; one endpoint is the pod:\n", exampleService.Name,
		exampleService.Ports[0].ClusterIP)
	d.block(func(f flows.Flow) bool { return f.Owner == model.ServiceOwner(exampleService.Name) }, true)
	d.line("\n%s has the address %s and the pod CIDR %s:\n", exampleNode.Name, exampleNode.Addrs[0],
		exampleNode.PodCIDRs[0])
	d.block(func(f flows.Flow) bool { return f.Owner == model.NodeOwner(exampleNode.Name) }, true)
	d.line("\nThe NetworkPolicy `%s` selects the pod. It lets two other pods and a range reach its TCP ports 80, 443 "+
		"and 8080 to 8087, and the pod ask for UDP port 53 anywhere:\n", examplePolicy.ID)
	d.block(func(f flows.Flow) bool { return f.Owner == examplePolicy.ID.Owner() }, true)
	d.line("\nThe ClusterNetworkPolicy `%s` has the tier Admin and priority 10. It passes the pod's UDP packets to port "+
		"53 of one address on to NetworkPolicies, and denies all others to it:\n", exampleClusterPolicy.ID)
	d.block(func(f flows.Flow) bool { return f.Owner == exampleClusterPolicy.ID.Owner() }, true)
	d.line("\nIPv6 addresses have flows like these, with neighbour solicitations in place of ARP requests.")
}

// kernelDatapath gives the flows that differ with the datapath.
func (d *docWriter) kernelDatapath() {
	d.line("\n## With the kernel's datapath")
	d.line("Everything above is with `datapath: netdev`. With `system`, OVS refuses flows that write an advertisement's " +
		"flags. There a neighbour")
	d.line("solicitation is answered by one that goes the other way: who is asked learns from the question where the " +
		"asker is (RFC 4861, 7.2.3).")
	d.line("The asker's answer to that is dropped. These flows take the place of those with `NDAdvertise`, and an IPv6 " +
		"pod has one more")
	d.line("for each address that it answers with. Commit lets a connection change its source port where its replies " +
		"would be taken for another's,")
	d.line("and there are no flows for fragments:\n")
	d.blockOf(d.kernel, func(flows.Flow) bool { return true }, true)
}

// block lists flows of the example, one a line: table, priority, match, actions, and the reason where they drop.
func (d *docWriter) block(which func(flows.Flow) bool, withTable bool) {
	d.blockOf(d.flows, which, withTable)
}

func (d *docWriter) blockOf(list []flows.Flow, which func(flows.Flow) bool, withTable bool) {
	w := tabwriter.NewWriter(d, 0, 0, 2, ' ', 0)
	for _, f := range list {
		if !which(f) {
			continue
		}
		table := ""
		if withTable {
			table = flows.TableName(f.Table) + "\t"
		}
		match := f.Match.String()
		if match == "" {
			match = "(any)"
		}
		text := openflow.Names{Table: flows.TableName}.Actions(f.Actions)
		if f.Reason != "" {
			text += " (" + string(f.Reason) + ")"
		}
		fmt.Fprintf(w, "    %s%d\t%s\t%s\n", table, f.Priority, match, text)
	}
	if err := w.Flush(); err != nil {
		d.t.Fatal(err)
	}
}

func (d *docWriter) registers() {
	d.line("\n## Registers\n| Register | Bits | Meaning |\n|---|---|---|")
	d.line("| `%s` | %#x | where the packet came from: %d a pod of this node, %d another node, %d the gateway |",
		flows.Origin.Register, flows.Origin.Mask, flows.OriginPod, flows.OriginNode, flows.OriginGateway)
	d.line("| `%s` | %#x | the packet may leave by the port that it came in by |", flows.Returns.Register,
		flows.Returns.Mask)
	d.line("| `%s` | %#x | the agent has made the packet for a connection that policies allow again |",
		flows.AllowAgain.Register, flows.AllowAgain.Mask)
	d.line("| `%s` | all | the OpenFlow port that Output sends to |", flows.OutPort)
	d.line("| `reg2` | all | a place to put an address while ARPNDReply exchanges two |")
}

func (d *docWriter) portsAndAddresses() {
	d.line("\n## Ports\n| OpenFlow port | Name | What |\n|---|---|---|")
	for _, e := range model.Encapsulations {
		d.line("| %d | `%s` | %s tunnels to every node, %s |", e.Port(), e.PortName(), e.Title(), e.OuterProtocol())
	}
	d.line("| %d | `%s` | the gateway: the node's own interface, with the first address of each pod CIDR |",
		model.PortGateway, model.GatewayName)
	d.line("| %d to %d | the pod's name and six hexadecimal digits | pods |", model.PortPodMin, model.PortPodMax)
	d.line("\nAll tunnel ports receive; `tunnelType` says which one sends.")
	d.line("\n## MAC addresses\n| Address | Whose |\n|---|---|")
	d.line("| `%s` | the router: the next hop of every pod and of every gateway, on every node |", model.RouterMAC)
	d.line("| `%s` | the gateway `%s`, on every node |", model.GatewayMAC, model.GatewayName)
	d.line("| `%s` | the source of what a Service returns to the gateway with the client's own address |",
		model.ReturnedMAC)
	d.line("| `0a:58:` and an IPv4 address | a pod; without an IPv4 address, a hash of its IPv6 address |")
}

func (d *docWriter) cookies() {
	d.line("\n## Cookies")
	d.line("A flow's cookie says what the flow exists for: 16 bits that mean Weft (`%#x`), 8 bits of kind, 40 bits of a "+
		"hash of the name.", flows.Cookie(model.Owner{})>>48)
	d.line("Every flow of an object has the same cookie; the name comes back from `weftctl flows`, which knows the " +
		"node's objects.\n")
	d.line("| Kind | | Example | Cookie |\n|---|---|---|---|")
	about := map[model.Kind]struct {
		meaning string
		example model.Owner
	}{
		model.KindPipeline: {"what every node has", model.PipelineOwner},
		model.KindSelf:     {"the node's own pod CIDRs", model.SelfOwner},
		model.KindNode:     {"the way to and from another node", model.NodeOwner(exampleNode.Name)},
		model.KindPod:      {"a pod of this node", model.PodOwner(examplePod)},
		model.KindService:  {"a Service", model.ServiceOwner("shop/web")},
		model.KindPolicy:   {"a NetworkPolicy", model.NetworkPolicy("shop", "backend-from-frontend").Owner()},

		model.KindClusterPolicy: {"a ClusterNetworkPolicy", model.ClusterNetworkPolicy("no-metadata").Owner()},
		model.KindStagedPolicy: {"a staged NetworkPolicy",
			model.Policy{ID: model.NetworkPolicy("shop", "next-week"), Staged: true}.Owner()},
		model.KindStagedClusterPolicy: {"a staged ClusterNetworkPolicy",
			model.Policy{ID: model.ClusterNetworkPolicy("next-month"), Staged: true}.Owner()},
	}
	for kind := model.Kind(1); !strings.HasPrefix(kind.String(), "kind"); kind++ {
		a, ok := about[kind]
		if !ok {
			d.t.Fatalf("say in this test what kind %s is", kind)
		}
		d.line("| %d | %s | `%s` | `%#x` |", kind, a.meaning, a.example, flows.Cookie(a.example))
	}
	d.line("\nSo all flows of pods, and all of one object, are:\n")
	pods := flows.Cookie(model.Owner{Kind: model.KindPod}) &^ (1<<40 - 1)
	d.line("    ovs-ofctl --names -O OpenFlow15 dump-flows weft cookie=%#x/%#x", pods, ^uint64(1<<40-1))
	d.line("    ovs-ofctl --names -O OpenFlow15 dump-flows weft cookie=%#x/-1", flows.Cookie(model.PodOwner(examplePod)))
	d.line("\nWeft deletes only flows that have its mark, and repairs those that another program changed.")
}

// reasons lists why packets are dropped, and by which flows of the example.
func (d *docWriter) reasons() {
	d.line("\n## Drop reasons")
	d.line("`weftctl status` counts dropped packets by these, and `weftctl flows` shows them beside each flow that " +
		"drops.\n")
	d.line("| Reason | What was dropped | Table | Flows of |\n|---|---|---|---|")
	known := map[flows.Reason]bool{}
	for _, r := range reasonComments(d.t) {
		var where, whose []string
		for _, f := range d.flows {
			if f.Reason != r.reason {
				continue
			}
			if name := flows.TableName(f.Table); !slices.Contains(where, name) {
				where = append(where, name)
			}
			if kind := f.Owner.Kind.String(); !slices.Contains(whose, kind) {
				whose = append(whose, kind)
			}
		}
		if len(where) == 0 {
			d.t.Errorf("no flow of the example drops with the reason %s", r.reason)
		}
		slices.Sort(whose)
		known[r.reason] = true
		d.line("| `%s` | %s | %s | %s |", r.reason, r.comment, strings.Join(where, ", "), strings.Join(whose, ", "))
	}
	for _, f := range d.flows {
		if f.Reason != "" && !known[f.Reason] {
			d.t.Errorf("the reason %q is not a constant of type Reason", f.Reason)
		}
	}
}

type reasonComment struct {
	reason  flows.Reason
	comment string
}

// reasonComments reads the constants of type Reason and the comments behind them.
func reasonComments(t *testing.T) []reasonComment {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "compile.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var list []reasonComment
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); !ok || typ.Name != "Reason" {
			return true
		}
		literal, ok := spec.Values[0].(*ast.BasicLit)
		if !ok {
			return true
		}
		value, err := strconv.Unquote(literal.Value)
		comment := strings.TrimSpace(spec.Comment.Text())
		if err != nil || comment == "" {
			t.Errorf("the reason %s has no explanation", literal.Value)
		}
		list = append(list, reasonComment{flows.Reason(value), comment})
		return true
	})
	if len(list) == 0 {
		t.Fatal("compile.go has no constants of type Reason")
	}
	return list
}

func tableNames(ids []openflow.TableID) []string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = flows.TableName(id)
	}
	return names
}

func quoted(words []string) []string {
	list := make([]string, len(words))
	for i, w := range words {
		list[i] = "`" + w + "`"
	}
	return list
}

func orNone(list []string, separator string) string {
	if len(list) == 0 {
		return "nothing"
	}
	return strings.Join(list, separator)
}
