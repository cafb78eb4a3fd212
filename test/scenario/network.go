package scenario

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/state"
	"github.com/weft-cni/weft/pkg/trace/walk"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/manifest"
)

// network is a cluster of interpreted switches. Objects take the agent's way: pkg/kube, pkg/state, pkg/flows.
type network struct {
	names
	paper *lab.Paper
	count int // of nodes where the manifests have none
	nodes []*node
	pods  map[string]*pod
	// walker follows packets through the nodes as they are now.
	walker *walk.Cluster
	walked []walk.Node // that walker is made of
	kernel bool
	ports  uint32 // of pods so far
	// transport is the configured one; zero for the default.
	transport model.Transport
}

// node is a node with its agent's state and its switch.
type node struct {
	name     string
	addrs    []netip.Addr
	store    *state.Store
	compiler *flows.Compiler
	snapshot *model.Snapshot
	gone     map[string]state.Change // what deletes an object that the store has
	objects  policy.Cluster          // what policies are evaluated by
}

type pod struct {
	key    string
	object *corev1.Pod
	node   *node
	onHost bool
	ips    []netip.Addr
	port   uint32
	mac    model.MAC
}

func newNetwork(family lab.Family, kernel bool, nodes int) *network {
	return &network{
		names: names{services: map[string][]netip.Addr{}}, paper: lab.NewPaper(family), count: nodes, kernel: kernel,
		pods: map[string]*pod{},
	}
}

// apply makes the cluster what the manifests say.
func (n *network) apply(manifests documents) error {
	set, err := n.paper.Parse("objects.yaml", []byte(manifests.text()), n.count)
	if err != nil {
		return err
	}
	return n.take(set)
}

// take makes the cluster what manifests that were read say.
func (n *network) take(set manifest.Set) error {
	objects := n.paper.Apply(set)
	if len(n.nodes) == 0 {
		for _, o := range set.Nodes {
			n.nodes = append(n.nodes, &node{
				name: o.Name, store: state.New(o.Name), compiler: flows.NewCompiler(), gone: map[string]state.Change{},
			})
		}
	}
	n.takePods(objects[apiserver.Pods])
	n.takeServices(objects[apiserver.Services])
	for _, here := range n.nodes {
		if err := n.update(here, objects); err != nil {
			return fmt.Errorf("node %s: %w", here.name, err)
		}
	}
	n.takeNames()
	return n.walk()
}

func (n *network) known() names { return n.names }

// takeServices notes addresses. Those of a Service that is gone can still be tried.
func (n *network) takeServices(objects []apiserver.Object) {
	for _, o := range objects {
		service, ok := o.(*corev1.Service)
		if !ok {
			continue
		}
		var ips []netip.Addr
		for _, text := range service.Spec.ClusterIPs {
			if ip, err := netip.ParseAddr(text); err == nil { // a headless one has None
				ips = append(ips, ip)
			}
		}
		n.services[service.Namespace+"/"+service.Name] = ips
	}
}

// takePods notes the pods. Their ports are numbered as they come.
func (n *network) takePods(objects []apiserver.Object) {
	now := map[string]*pod{}
	for _, o := range objects {
		object, ok := o.(*corev1.Pod)
		if !ok {
			continue
		}
		key := object.Namespace + "/" + object.Name
		p := &pod{key: key, object: object, onHost: object.Spec.HostNetwork}
		i := slices.IndexFunc(n.nodes, func(one *node) bool { return one.name == object.Spec.NodeName })
		p.node = n.nodes[i]
		for _, ip := range object.Status.PodIPs {
			p.ips = append(p.ips, netip.MustParseAddr(ip.IP))
		}
		if old := n.pods[key]; old != nil {
			p.port = old.port
		} else {
			n.ports++
			p.port = model.PortPodMin + n.ports
		}
		p.mac = model.MAC{0x0a, 0x58, 0, 0, 1, byte(p.port)}
		now[key] = p
	}
	n.pods = now
}

func (n *network) takeNames() {
	n.names.pods, n.names.nodes, n.gateways = map[string]podAddrs{}, map[string][]netip.Addr{}, map[string][]netip.Addr{}
	n.names.outside = n.paper.Outside()
	for key, p := range n.pods {
		n.names.pods[key] = podAddrs{p.ips, p.node.name, p.onHost}
	}
	for _, one := range n.nodes {
		n.names.nodes[one.name] = one.addrs
		for _, cidr := range one.snapshot.Self.PodCIDRs {
			n.gateways[one.name] = append(n.gateways[one.name], model.GatewayAddr(cidr))
		}
	}
}

// update gives a node the objects and compiles what changed.
func (n *network) update(here *node, objects map[string][]apiserver.Object) error {
	set, gone, err := changes(here.name, objects)
	if err != nil {
		return err
	}
	for _, p := range n.pods {
		if p.node == here && !p.onHost {
			a := model.Attachment{
				ContainerID: p.key, IfName: "eth0", OFPort: p.port, MAC: p.mac, IPs: p.ips, HostIfName: fmt.Sprint("port", p.port),
				Pod: model.PodRef{Namespace: p.object.Namespace, Name: p.object.Name, UID: string(p.object.UID)},
			}
			set = append(set, state.SetAttachment{Attachment: a})
			gone["attachment "+p.key] = state.DeleteAttachment{Key: a.Key()}
		}
	}
	for key, deletion := range here.gone {
		if gone[key] == nil {
			set = append(set, deletion)
		}
	}
	here.gone = gone
	set = append(set, state.SetKernelDatapath{Kernel: n.kernel},
		state.SetDNSServers{Servers: config.Default().TrustedDNS()}, state.Synced{})
	if n.transport != (model.Transport{}) {
		set = append(n.publish(set), state.SetTransport{Transport: n.transport})
	}
	here.objects = policy.Cluster{Namespaces: map[string]map[string]string{}}
	for _, c := range set {
		here.store.Apply(c)
		switch c := c.(type) {
		case state.SetPod:
			if c.Pod.Node == here.name {
				here.objects.Pods = append(here.objects.Pods, c.Pod)
			}
		case state.SetNamespace:
			here.objects.Namespaces[c.Namespace.Name] = c.Namespace.Labels
		case state.SetPolicy:
			here.objects.Policies = append(here.objects.Policies, c.Policy)
		case state.SetPeerNode:
			here.objects.PeerNodes = append(here.objects.PeerNodes, c.Node)
		}
	}
	snapshot, changed := here.store.Take()
	if here.addrs = snapshot.Self.Addrs; len(snapshot.LocalAddrs) == 0 {
		here.store.Apply(state.SetLocalAddrs{Addrs: slices.SortedFunc(slices.Values(here.locals(snapshot)),
			netip.Addr.Compare)})
		var more []model.Owner
		snapshot, more = here.store.Take()
		changed = append(changed, more...)
	}
	here.snapshot = snapshot
	if _, failed := here.compiler.Update(snapshot, changed); len(failed) > 0 {
		return failed[0]
	}
	full, err := flows.Compile(snapshot)
	if err == nil && full.String() != here.compiler.Desired().String() {
		err = errors.New("the flows after the change differ from those of a full compilation")
	}
	return err
}

// publish makes all nodes neighbors that receive packets without a tunnel, and lets their kernels have the routes.
func (n *network) publish(set []state.Change) []state.Change {
	if n.transport.Mode == model.ModeOverlay {
		return set
	}
	var cidrs []netip.Prefix
	for i, c := range set {
		c, ok := c.(state.SetNode)
		if !ok {
			continue
		}
		c.Node.ReceivesDirect = true
		for _, a := range c.Node.Addrs {
			c.Node.Underlay = append(c.Node.Underlay, model.Uplink{Prefix: netip.PrefixFrom(a, 24), MAC: model.MAC{2,
				5: a.AsSlice()[3]}})
		}
		cidrs = append(cidrs, c.Node.PodCIDRs...)
		set[i] = c
	}
	slices.SortFunc(cidrs, netip.Prefix.Compare)
	return append(set, state.SetRouted{CIDRs: cidrs})
}

// locals are the addresses of the node's kernel.
func (here *node) locals(s *model.Snapshot) []netip.Addr {
	addrs := slices.Clone(s.Self.Addrs)
	for _, cidr := range s.Self.PodCIDRs {
		addrs = append(addrs, model.GatewayAddr(cidr))
	}
	return addrs
}

// changes translates objects as the agent of a node does. Gone are the changes that delete them again.
func changes(self string, objects map[string][]apiserver.Object) (set []state.Change, gone map[string]state.Change,
	err error) {
	gone = map[string]state.Change{}
	var errs []error
	for _, resource := range slices.Sorted(maps.Keys(objects)) {
		for _, o := range objects[resource] {
			if ranges, ok := o.(*networkingv1.ServiceCIDR); ok {
				var cidrs []netip.Prefix
				for _, text := range ranges.Spec.CIDRs {
					cidrs = append(cidrs, netip.MustParsePrefix(text)) // the lab's own
				}
				set = append(set, state.SetServiceCIDRs{CIDRs: cidrs})
				continue
			}
			e := kube.EffectOf(self, o)
			errs, set = append(errs, e.Problem), append(set, e.Set...)
			for _, deletion := range e.Gone {
				gone[fmt.Sprintf("%T %s/%s", deletion, o.GetNamespace(), o.GetName())] = deletion
			}
		}
	}
	return set, gone, errors.Join(errs...)
}

// flowsOf are the flows and groups of an owner on a node, a line each, as a reviewer reads them.
func (n *network) flowsOf(name, owner string) (string, error) {
	i := slices.IndexFunc(n.nodes, func(one *node) bool { return one.name == name })
	if i < 0 {
		return "", fmt.Errorf("there is no node %q", name)
	}
	desired := n.nodes[i].compiler.Desired()
	list := slices.SortedFunc(maps.Values(desired.Flows), func(a, b flows.Flow) int { return a.Key.Compare(b.Key) })
	var b strings.Builder
	for _, f := range list {
		if f.Owner.String() == owner {
			fmt.Fprintf(&b, "%s %d %s -> %s", flows.TableName(f.Table), f.Priority, f.Match, f.Actions)
			if f.Reason != "" {
				fmt.Fprintf(&b, " # %s", f.Reason)
			}
			b.WriteByte('\n')
		}
	}
	for _, id := range slices.Sorted(maps.Keys(desired.Groups)) {
		if g := desired.Groups[id]; g.Owner.String() == owner {
			b.WriteString(strings.ReplaceAll(g.Group.String(), ",bucket=", "\n    bucket=") + "\n")
		}
	}
	return b.String(), nil
}

// maxBuckets bounds how many choices of a group are followed.
const maxBuckets = 1024

// clientPort is the source port: one that no rule of nodes changes.
const clientPort = 40000

// try follows connections for every choice of the Service's group, and compares weftctl's trace with them.
func (n *network) try(probes []probe) ([]result, error) {
	var list []result
	for _, p := range probes {
		from, seen := n.place(p.step.from), newVerdicts(p.step.verdict)
		first := walk.First(netip.AddrPortFrom(n.walker.Source(from, p.to.Addr(), n.names.outside), clientPort), p.to,
			p.step.to.protocol.Number())
		buckets := n.follow(p, from, first, 0, seen)
		for i := range min(buckets, maxBuckets) - 1 {
			n.follow(p, from, first, i+1, seen)
		}
		t := n.walker.Trace(walk.Query{From: from, Src: first.Src.Addr(), To: p.to, Protocol: first.Protocol})
		if got := n.verdictOf(t, p.step.verdict); got != seen.firsts() {
			return nil, fmt.Errorf("%s: the trace says %q, the packets %q:\n%s", p.step.line, got, seen.firsts(), t.Text(true))
		}
		x := n.walker.Explain(t.Query)
		if err := explained(x, t); err != nil {
			return nil, fmt.Errorf("%s: %w", p.step.line, err)
		}
		r := result{step: p.step, got: seen.String() + wouldBe(x.Preview)}
		if !r.ok() {
			r.detail = t.Text(true)
		}
		list = append(list, r)
	}
	return list, nil
}

// explained compares what the policies say of a connection with what becomes of its packets.
func explained(x walk.Explanation, t walk.Trace) error {
	want := walk.Allowed
	for _, p := range t.Paths {
		if r := flows.Reason(p.Reason); r == flows.PolicyEgress || r == flows.PolicyIngress {
			want = walk.Denied
		}
	}
	if x.Verdict == want && len(x.Disagreements) == 0 {
		return nil
	}
	var b strings.Builder
	_ = walk.WriteExplanations(&b, []walk.Explanation{x}, func(text string) string { return text }) // into memory
	return fmt.Errorf("weftctl policy explain does not say %s:\n%s", want, b.String())
}

// verdictOf is what a trace says, as verdicts say it of packets.
func (n *network) verdictOf(t walk.Trace, want verdict) string {
	seen := newVerdicts(want)
	for _, p := range t.Paths {
		seen.add(n.names, p.End())
	}
	return seen.firsts()
}

// follow follows one connection, or two of one client, and returns how many choices there are, at least one.
func (n *network) follow(p probe, from walk.Place, first walk.Packet, bucket int, seen *verdicts) (buckets int) {
	c := n.walker.Conversation(bucket)
	e := c.Connect(from, first)
	seen.add(n.names, e)
	if e.Outcome == walk.Reaches && p.step.verdict.sticky {
		second := first
		second.Src = netip.AddrPortFrom(first.Src.Addr(), clientPort+1)
		if again := c.Connect(from, second); again.At != e.At {
			seen.unstable = append(seen.unstable, fmt.Sprintf("%s, then %s", e.At, again.At))
		}
	}
	return max(1, c.Most)
}

// place is where a client, which names knows, sends from.
func (n *network) place(client string) walk.Place {
	if p, ok := n.pods[client]; ok {
		return walk.Place{Pod: p.key, Node: p.node.name}
	}
	if _, ok := n.names.nodes[client]; ok {
		return walk.Place{Node: client}
	}
	return walk.Place{}
}

// listens is the pod whose container has a port, of those in the network where a packet has arrived.
func (n *network) listens(at walk.Place, protocol uint8, number uint16) (string, bool) {
	for _, candidate := range n.pods {
		inPod := at.Pod != ""
		if candidate.node.name != at.Node || candidate.onHost == inPod || inPod && candidate.key != at.Pod {
			continue
		}
		for _, container := range candidate.object.Spec.Containers {
			for _, port := range container.Ports {
				have := model.Protocol(cmp.Or(string(port.Protocol), string(model.TCP)))
				if have.Number() == protocol && uint16(port.ContainerPort) == number {
					return candidate.key, true
				}
			}
		}
	}
	return "", false
}

// walk makes what packets are followed through from what agents would answer, as JSON.
func (n *network) walk() error {
	nodes := make([]walk.Node, len(n.nodes))
	for i, here := range n.nodes {
		list, groups := walk.FlowsOf(here.compiler.Desired())
		one, err := walk.NodeOf(here.snapshot, list, groups)
		if err != nil {
			return err
		}
		one.Policies = &walk.Policies{Cluster: here.objects}
		for _, p := range n.pods {
			if p.node == here && p.onHost {
				one.Pods = append(one.Pods, walk.Pod{Name: p.key, IPs: p.ips, HostNetwork: true})
			}
		}
		text, err := json.Marshal(one)
		if err == nil {
			err = json.Unmarshal(text, &nodes[i])
		}
		if err != nil {
			return err
		}
	}
	n.walked = nodes
	var err error
	n.walker, err = walk.New(nodes, walk.Options{Listens: n.listens, Outside: func(a netip.Addr) bool {
		return slices.Contains(n.names.outside, a)
	}})
	return err
}
