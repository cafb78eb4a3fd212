package lab

import (
	"cmp"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/test/lab/manifest"
)

// Paper is a lab on paper: it completes manifests to the objects that the agents of such a lab see, with the same
// addresses for nodes and Services, and starts nothing. It belongs to one goroutine.
type Paper struct {
	lab  *Lab
	next map[string]int // by node: number of the next pod's address
}

// NewPaper makes a lab on paper without any object.
func NewPaper(family Family) *Paper {
	return &Paper{lab: &Lab{opt: Options{Family: family}, pods: map[string]*pod{}}, next: map[string]int{}}
}

// Parse reads manifests as a lab of this family does.
func (p *Paper) Parse(name string, text []byte, nodes int) (manifest.Set, error) {
	return manifest.Parse(name, text, manifest.Options{Nodes: nodes, ServiceCIDRs: p.lab.opt.Family.serviceCIDRs()})
}

// Apply replaces the manifests, and returns all objects by resource. The first manifests decide about the nodes. Pods
// keep their addresses while they are in the manifests.
func (p *Paper) Apply(set manifest.Set) map[string][]apiserver.Object {
	if len(p.lab.nodes) == 0 {
		p.lab.planNodes(set)
	}
	before := p.lab.pods
	p.lab.set, p.lab.pods = set, map[string]*pod{}
	for _, object := range set.Pods {
		key := keyOf(object)
		next := &pod{key: key, object: object.DeepCopy(), node: p.lab.nodeNamed(object.Spec.NodeName)}
		if old := before[key]; old != nil && old.node == next.node && old.onHost() == next.onHost() {
			next.ips = old.ips
		} else {
			next.ips = p.addrs(next)
		}
		next.object.UID = types.UID(key)
		p.lab.pods[key] = next
	}
	all := map[string][]apiserver.Object{}
	for _, o := range append(p.lab.nodeObjects(set), p.lab.otherObjects(nil)...) {
		all[o.resource] = o.list
	}
	return all
}

// addrs are a new pod's addresses: those of its node, or the next free ones of the node's ranges.
func (p *Paper) addrs(of *pod) (ips []netip.Addr) {
	if of.onHost() {
		return addrsOf(of.node.underlay)
	}
	const first = 2 // behind the gateway
	number := cmp.Or(p.next[of.node.name], first)
	p.next[of.node.name] = number + 1
	for _, cidr := range of.node.podCIDRs {
		ip := cidr.Addr()
		for range number {
			ip = ip.Next()
		}
		ips = append(ips, ip)
	}
	return ips
}

// Outside are the addresses of the host that is not a node.
func (p *Paper) Outside() []netip.Addr { return addrsOf(p.lab.opt.Family.member(outside)) }

// ExternalAddrs are the addresses of a Service that the host outside has routes to, through the first node.
func ExternalAddrs(s *corev1.Service) []netip.Addr { return externalAddrs(s) }
