package flows

import (
	"net/netip"
	"reflect"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// A compile function receives what it reads, by value: the object of its owner, and the inputs that all owners of its
// kind have in common. So what must be compiled again follows from types: an owner whose object has changed, and all
// owners of a kind whose inputs have. No compile function receives a snapshot.

// kind is the owners of one kind: where a snapshot has what they read, and what follows from it.
type kind[Object, Inputs any] struct {
	object  func(*model.Snapshot, model.Owner) (_ Object, exists bool)
	inputs  func(*model.Snapshot) Inputs
	compile func(*builder, Object, Inputs)
}

func (k kind[Object, Inputs]) build(b *builder, s *model.Snapshot, o model.Owner) {
	if object, exists := k.object(s, o); exists {
		k.compile(b, object, k.inputs(s))
	}
}

func (k kind[Object, Inputs]) read(s *model.Snapshot) any { return k.inputs(s) }

// kinds are all kinds.
var kinds = map[model.Kind]interface {
	// build compiles one owner.
	build(b *builder, s *model.Snapshot, o model.Owner)
	// read returns the inputs, to be compared with reflect.DeepEqual.
	read(s *model.Snapshot) any
}{
	model.KindPipeline: kind[none, pipelineInputs]{thereIs, pipelineInputsOf, (*builder).everyNode},
	model.KindSelf:     kind[none, selfInputs]{thereIs, selfInputsOf, (*builder).thisNode},
	model.KindNode:     kind[model.Path, none]{pathOf, nothing, (*builder).node},
	model.KindPod:      kind[podObject, podInputs]{podOf, podInputsOf, (*builder).podOrClosed},
	model.KindService:  kind[serviceObject, localInputs]{serviceOf, localInputsOf, (*builder).serviceOrProxy},
	model.KindPolicy:   policies,

	model.KindClusterPolicy:       policies,
	model.KindStagedPolicy:        stagedPolicies,
	model.KindStagedClusterPolicy: stagedPolicies,
}

// The flows of enforced policies are also in the preview, while there is one.
var (
	policies       = kind[model.Policy, staging]{(*model.Snapshot).PolicyOf, stagingOf, (*builder).policy}
	stagedPolicies = kind[model.Policy, none]{(*model.Snapshot).PolicyOf, nothing, (*builder).stagedPolicy}
)

// none is the object of owners that are always there, and the inputs of those that read nothing else.
type none struct{}

func thereIs(*model.Snapshot, model.Owner) (none, bool) { return none{}, true }
func nothing(*model.Snapshot) none                      { return none{} }

// datapath is the kind of the switch's datapath.
type datapath struct{ kernel bool }

func datapathOf(s *model.Snapshot) datapath { return datapath{s.KernelDatapath} }

// pipelineInputs are what the flows of every node follow from.
type pipelineInputs struct {
	datapath
	staging
	keepEstablished bool
}

func pipelineInputsOf(s *model.Snapshot) pipelineInputs {
	return pipelineInputs{datapathOf(s), stagingOf(s), s.KeepEstablished}
}

// podInputs are what pods' flows read.
type podInputs struct {
	datapath
	staging
}

func podInputsOf(s *model.Snapshot) podInputs { return podInputs{datapathOf(s), stagingOf(s)} }

// localInputs are what Services read of this node.
type localInputs struct {
	datapath
	addrs    []netip.Addr // the primary one first
	podCIDRs []netip.Prefix
}

func localInputsOf(s *model.Snapshot) localInputs {
	return localInputs{datapathOf(s), s.Self.Addrs, s.SelfPath().PodCIDRs}
}

// primaryAddr is the source address of the node's own packets; invalid when it has none.
func (n localInputs) primaryAddr() netip.Addr { return model.Node{Addrs: n.addrs}.Primary() }

// ownRange is the node's pod CIDR of a family: what comes from there, the gateway's address included, is internal.
func (n localInputs) ownRange(is4 bool) netip.Prefix {
	for _, cidr := range n.podCIDRs {
		if cidr.Addr().Is4() == is4 {
			return cidr
		}
	}
	return netip.Prefix{}
}

// selfInputs are what follows from this node's own addresses and ranges.
type selfInputs struct {
	localInputs
	staging
	otherAddrs   []netip.Addr // model.Snapshot.LocalAddrs
	serviceCIDRs []netip.Prefix
	// dnsServers are the trusted ones, while a policy has domain names.
	dnsServers []netip.AddrPort
}

func selfInputsOf(s *model.Snapshot) selfInputs {
	return selfInputs{localInputsOf(s), stagingOf(s), s.LocalAddrs, s.ServiceCIDRs, dnsServersOf(s)}
}

// nodeAddrs are the addresses that mean this node to policies, those among its pods included.
func (n selfInputs) nodeAddrs() []netip.Addr {
	addrs := slices.Concat(n.addrs, n.otherAddrs)
	for _, cidr := range n.podCIDRs {
		addrs = append(addrs, model.GatewayAddr(cidr))
	}
	return addrs
}

func pathOf(s *model.Snapshot, o model.Owner) (model.Path, bool) {
	path, exists := s.Paths[o.Name]
	return path, exists
}

// podObject is an attachment. One whose pod is unknown has no flows: it stays closed.
type podObject struct {
	attachment model.Attachment
	unknown    bool
}

func podOf(s *model.Snapshot, o model.Owner) (podObject, bool) {
	a, exists := s.Attachments[o.Attachment]
	return podObject{a, s.Unknown[o.Attachment]}, exists && a.Pod.String() == o.Name
}

// serviceObject is a Service, or the ClusterIPs of one that another proxy serves, or both while one becomes the other.
type serviceObject struct {
	service      model.Service
	otherProxies []netip.Addr
}

func serviceOf(s *model.Snapshot, o model.Owner) (serviceObject, bool) {
	return serviceObject{s.Services[o.Name], s.OtherProxies[o.Name]}, true
}

// inputs are those of all kinds.
type inputs map[model.Kind]any

func inputsOf(s *model.Snapshot) inputs {
	all := make(inputs, len(kinds))
	for k, kind := range kinds {
		all[k] = kind.read(s)
	}
	return all
}

// Dirty lists the owners whose flows may differ from those of the last snapshot that was compiled, each once: those
// whose objects have changed, and all of each kind whose inputs have. Update compiles these.
func (c *Compiler) Dirty(s *model.Snapshot, changed []model.Owner) []model.Owner {
	return c.dirty(s, c.read(s), changed)
}

func (c *Compiler) dirty(s *model.Snapshot, now inputs, changed []model.Owner) []model.Owner {
	stale := map[model.Kind]bool{}
	for k, in := range now {
		if !reflect.DeepEqual(in, c.inputs[k]) {
			stale[k] = true
		}
	}
	if len(stale) == 0 {
		return changed
	}
	dirty := slices.Clone(changed)
	listed := make(map[model.Owner]bool, len(changed))
	for _, o := range changed {
		listed[o] = true
	}
	for _, o := range Owners(s) {
		if stale[o.Kind] && !listed[o] {
			dirty = append(dirty, o)
		}
	}
	return dirty
}
