package model

import (
	"cmp"
	"fmt"
)

// Kind is the kind of object that owns flows.
type Kind uint8

// The kinds. Every flow's cookie holds the number, so a number never changes.
const (
	// KindPipeline owns the flows that every node has, in every cluster.
	KindPipeline Kind = 1
	// KindSelf owns the flows of the node's own addresses and pod CIDRs.
	KindSelf Kind = 2
	// KindNode owns the path to and from another node.
	KindNode Kind = 3
	// KindPod owns the flows of a local pod's interface.
	KindPod Kind = 4
	// KindService owns the flows and groups of a Service.
	KindService Kind = 5
	// KindPolicy owns the flows of a NetworkPolicy.
	KindPolicy Kind = 6
	// KindClusterPolicy owns the flows of a ClusterNetworkPolicy.
	KindClusterPolicy Kind = 7
	// KindStagedPolicy and KindStagedClusterPolicy own the flows of those of them that are staged.
	KindStagedPolicy        Kind = 8
	KindStagedClusterPolicy Kind = 9
)

// stagedKinds are the kinds of staged policies by those of policies.
var stagedKinds = map[Kind]Kind{KindPolicy: KindStagedPolicy, KindClusterPolicy: KindStagedClusterPolicy}

// Policy is the kind of the policy that owns flows of this kind, and says whether it is staged; 0 for other owners.
func (k Kind) Policy() (of Kind, staged bool) {
	for enforced, staged := range stagedKinds {
		if k == enforced || k == staged {
			return enforced, k == staged
		}
	}
	return 0, false
}

// IsPolicy says whether the kind is one of policies, staged or not.
func (k Kind) IsPolicy() bool {
	of, _ := k.Policy()
	return of != 0
}

func (k Kind) String() string {
	switch k {
	case KindPipeline:
		return "pipeline"
	case KindSelf:
		return "self"
	case KindNode:
		return "node"
	case KindPod:
		return "pod"
	case KindService:
		return "service"
	case KindPolicy:
		return "policy"
	case KindClusterPolicy:
		return "clusterpolicy"
	case KindStagedPolicy:
		return "stagedpolicy"
	case KindStagedClusterPolicy:
		return "stagedclusterpolicy"
	}
	return fmt.Sprintf("kind%d", uint8(k))
}

// Owner is the object that flows belong to: the unit of compilation and of quarantine.
type Owner struct {
	Kind Kind
	// Namespace is that of a policy; empty for other kinds, whose Name has it.
	Namespace string
	// Name is the name of a node or policy, or namespace/name of a pod or Service; empty for the pipeline and for self.
	Name string
	// Attachment distinguishes a pod's interfaces; empty for the other kinds.
	Attachment AttachmentKey
}

// String is the owner as users write it: node/NAME, pod/NAMESPACE/NAME.
func (o Owner) String() string {
	if o.Name == "" {
		return o.Kind.String()
	}
	return o.Kind.String() + "/" + o.FullName()
}

// FullName is NAMESPACE/NAME, or NAME of an object of the cluster.
func (o Owner) FullName() string {
	if o.Namespace == "" {
		return o.Name
	}
	return o.Namespace + "/" + o.Name
}

// Policy is the identity of a policy that owns flows.
func (o Owner) Policy() PolicyID {
	of, _ := o.Kind.Policy()
	return PolicyID{of, o.Namespace, o.Name}
}

// Compare orders owners: a total order, for folds that must not depend on history.
func (o Owner) Compare(p Owner) int {
	return cmp.Or(cmp.Compare(o.Kind, p.Kind), cmp.Compare(o.Namespace, p.Namespace), cmp.Compare(o.Name, p.Name),
		cmp.Compare(o.Attachment.ContainerID, p.Attachment.ContainerID), cmp.Compare(o.Attachment.IfName,
			p.Attachment.IfName))
}

// PodOwner is the owner of a pod interface's flows.
func PodOwner(a Attachment) Owner {
	return Owner{Kind: KindPod, Name: a.Pod.String(), Attachment: a.Key()}
}

// NodeOwner is the owner of another node's flows.
func NodeOwner(name string) Owner { return Owner{Kind: KindNode, Name: name} }

// ServiceOwner is the owner of a Service's flows and groups; the name is namespace/name.
func ServiceOwner(name string) Owner { return Owner{Kind: KindService, Name: name} }

// SelfOwner and PipelineOwner exist on every node.
var (
	SelfOwner     = Owner{Kind: KindSelf}
	PipelineOwner = Owner{Kind: KindPipeline}
)
