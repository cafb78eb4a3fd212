package model

import (
	"cmp"
	"fmt"
)

// Kind says what sort of object flows exist for.
type Kind uint8

// The kinds. Their numbers are in every flow's cookie and never change.
const (
	// KindPipeline owns what every node has, whatever the cluster holds.
	KindPipeline Kind = 1
	// KindSelf owns what follows from the node's own addresses and pod CIDRs.
	KindSelf Kind = 2
	// KindNode owns the way to and from another node.
	KindNode Kind = 3
	// KindPod owns the flows of a local pod's interface.
	KindPod Kind = 4
	// KindService owns what a Service's packets meet.
	KindService Kind = 5
	// KindPolicy owns what follows from a NetworkPolicy.
	KindPolicy Kind = 6
)

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
	}
	return fmt.Sprintf("kind%d", uint8(k))
}

// Owner is what flows exist for: the unit of compilation and of blame.
type Owner struct {
	Kind Kind
	// Name is the object's name: a node's, or a pod's namespace/name.
	Name string
	// Attachment tells a pod's interfaces apart; for other kinds it is empty.
	Attachment AttachmentKey
}

// String is the owner as users write it: node/NAME, pod/NAMESPACE/NAME.
func (o Owner) String() string {
	if o.Name == "" {
		return o.Kind.String()
	}
	return o.Kind.String() + "/" + o.Name
}

// Compare gives owners an order, for folds that must not depend on history.
func (o Owner) Compare(p Owner) int {
	return cmp.Or(cmp.Compare(o.Kind, p.Kind), cmp.Compare(o.Name, p.Name),
		cmp.Compare(o.Attachment.ContainerID, p.Attachment.ContainerID), cmp.Compare(o.Attachment.IfName, p.Attachment.IfName))
}

// PodOwner is the owner of a pod interface's flows.
func PodOwner(a Attachment) Owner {
	return Owner{Kind: KindPod, Name: a.Pod.String(), Attachment: a.Key()}
}

// NodeOwner is the owner of another node's flows.
func NodeOwner(name string) Owner { return Owner{Kind: KindNode, Name: name} }

// ServiceOwner is the owner of a Service's flows and groups; the name is namespace/name.
func ServiceOwner(name string) Owner { return Owner{Kind: KindService, Name: name} }

// PolicyOwner is the owner of a NetworkPolicy's flows; the name is namespace/name.
func PolicyOwner(name string) Owner { return Owner{Kind: KindPolicy, Name: name} }

// SelfOwner and PipelineOwner own what every node has.
var (
	SelfOwner     = Owner{Kind: KindSelf}
	PipelineOwner = Owner{Kind: KindPipeline}
)
