package scenario

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/state"
	"github.com/weft-cni/weft/pkg/trace"
	"github.com/weft-cni/weft/test/lab"
)

// network is a cluster of interpreted switches. Objects take the agent's way: pkg/kube, pkg/state, pkg/flows.
type network struct {
	names
	paper *lab.Paper
	count int // of nodes where the manifests have none
	nodes []*node
	pods  map[string]*pod
	// external are the addresses of Services that the host outside has routes to.
	external map[netip.Addr]bool
	kernel   bool
	ports    uint32 // of pods so far
}

// node is a node with its agent's state and its switch.
type node struct {
	name     string
	addrs    []netip.Addr
	store    *state.Store
	compiler *flows.Compiler
	snapshot *model.Snapshot
	sw       *trace.Switch
	gone     map[string]state.Change // what deletes an object that the store has
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
		pods: map[string]*pod{}, external: map[netip.Addr]bool{},
	}
}

// apply makes the cluster what the manifests say.
func (n *network) apply(manifests documents) error {
	set, err := n.paper.Parse("objects.yaml", []byte(manifests.text()), n.count)
	if err != nil {
		return err
	}
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
	return nil
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
		for _, addr := range lab.ExternalAddrs(service) {
			n.external[addr] = true
		}
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
	set = append(set, state.SetKernelDatapath{Kernel: n.kernel}, state.Synced{})
	for _, c := range set {
		here.store.Apply(c)
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
	if err != nil {
		return err
	}
	here.sw, err = trace.Of(here.compiler.Desired())
	return err
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
			key := o.GetNamespace() + "/" + o.GetName()
			var change, deletion state.Change
			switch o := o.(type) {
			case *corev1.Node:
				node, err := kube.Node(o)
				errs = append(errs, err)
				change, deletion = state.SetNode{Node: node}, state.DeleteNode{Name: o.Name}
				if o.Name == self {
					set = append(set, state.SetZone{Zone: o.Labels[corev1.LabelTopologyZone]})
				}
			case *networkingv1.ServiceCIDR:
				var cidrs []netip.Prefix
				for _, text := range o.Spec.CIDRs {
					cidrs = append(cidrs, netip.MustParsePrefix(text)) // the lab's own
				}
				change = state.SetServiceCIDRs{CIDRs: cidrs}
			case *corev1.Namespace:
				change = state.SetNamespace{Namespace: policy.Namespace{Name: o.Name, Labels: o.Labels}}
				deletion = state.DeleteNamespace{Name: o.Name}
			case *corev1.Pod:
				change = state.SetPod{Pod: kube.Pod(o)}
				deletion = state.DeletePod{Namespace: o.Namespace, Name: o.Name}
			case *networkingv1.NetworkPolicy:
				change = state.SetPolicy{Policy: kube.NetworkPolicy(o)}
				deletion = state.DeletePolicy{Namespace: o.Namespace, Name: o.Name}
			case *corev1.Service:
				s, err := kube.Service(o)
				if err != nil {
					s.Problem = err.Error() // the rest of it is good
				}
				if selects(kube.ServiceSelector, o) {
					change, deletion = state.SetService{Service: &s}, state.DeleteService{Name: s.Name}
				} else if selects(kube.OtherProxySelector, o) {
					change = state.SetOtherProxy{Service: s.Name, ClusterIPs: s.ClusterIPs}
					deletion, key = state.SetOtherProxy{Service: s.Name}, key+" of another proxy"
				}
			case *discoveryv1.EndpointSlice:
				s, err := kube.EndpointSlice(o)
				errs = append(errs, err)
				if selects(kube.SliceSelector, o) {
					change, deletion = state.SetSlice{Slice: &s}, state.DeleteSlice{Name: s.Name}
				}
			}
			if change != nil {
				set = append(set, change)
			}
			if deletion != nil {
				gone[resource+" "+key] = deletion
			}
		}
	}
	return set, gone, errors.Join(errs...)
}

// selects reports whether the agent's watch with a label selector has an object.
func selects(selector string, o apiserver.Object) bool {
	s, err := labels.Parse(selector)
	return err == nil && s.Matches(labels.Set(o.GetLabels()))
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

// try follows connections for every choice of the Service's group.
func (n *network) try(probes []probe) ([]result, error) {
	var list []result
	for _, p := range probes {
		from, seen := n.place(p.step.from), newVerdicts(p.step.verdict)
		buckets := n.follow(p, from, 0, seen)
		for i := range min(buckets, maxBuckets) - 1 {
			n.follow(p, from, i+1, seen)
		}
		r := result{step: p.step, got: seen.String()}
		for i := 0; !r.ok() && i < min(buckets, 3); i++ {
			c := n.conversation(i, true)
			c.connect(from, p.to, p.step.to.protocol, clientPort)
			r.detail += c.log.String() + "\n"
		}
		list = append(list, r)
	}
	return list, nil
}

// follow follows one connection, or two of one client, and returns how many choices there are, at least one.
func (n *network) follow(p probe, from place, bucket int, seen *verdicts) (buckets int) {
	c := n.conversation(bucket, false)
	e := c.connect(from, p.to, p.step.to.protocol, clientPort)
	if e.outcome != reaches {
		seen.other(e.outcome, e.reason)
		return max(1, c.most)
	}
	seen.reached(n.names, e.at.String(), e.got.src.Addr())
	if p.step.verdict.sticky {
		if again := c.connect(from, p.to, p.step.to.protocol, clientPort+1); again.at != e.at {
			seen.unstable = append(seen.unstable, fmt.Sprintf("%s, then %s", e.at, again.at))
		}
	}
	return max(1, c.most)
}

// place is where a client, which names knows, sends from.
func (n *network) place(client string) place {
	if p, ok := n.pods[client]; ok {
		return place{p, p.node}
	}
	for _, one := range n.nodes {
		if one.name == client {
			return place{nil, one}
		}
	}
	return place{}
}
