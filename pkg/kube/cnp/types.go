// Package cnp has the fields of ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2) that Weft reads, with the
// names that sigs.k8s.io/network-policy-api v0.2.0 gives them. The module itself would decide which release of
// client-go the agent has. A field that is not here is one that Weft does not know: where the API wants exactly one
// field, none is then set, and the rule fails closed.
//
// The package has plain values.
package cnp

import (
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API's.
var GroupVersion = schema.GroupVersion{Group: "policy.networking.k8s.io", Version: "v1alpha2"}

// Resource is the kind's name in paths.
const Resource = "clusternetworkpolicies"

// Kind is the kind's name in manifests.
const Kind = "ClusterNetworkPolicy"

// ClusterNetworkPolicy is a policy of the cluster.
type ClusterNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec   Spec   `json:"spec"`
	Status Status `json:"status,omitzero"`
}

// List is a list of policies.
type List struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []ClusterNetworkPolicy `json:"items"`
}

// Spec is what a policy is to do.
type Spec struct {
	Tier     string  `json:"tier"`
	Priority int32   `json:"priority"`
	Subject  Subject `json:"subject"`
	Ingress  []Rule  `json:"ingress,omitempty"`
	Egress   []Rule  `json:"egress,omitempty"`
}

// Status is what is known of a policy; Weft writes none.
type Status struct {
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Subject selects the policy's pods. Exactly one field is set.
type Subject struct {
	Namespaces *metav1.LabelSelector `json:"namespaces,omitempty"`
	Pods       *NamespacedPod        `json:"pods,omitempty"`
}

// NamespacedPod selects pods of some namespaces.
type NamespacedPod struct {
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`
	PodSelector       metav1.LabelSelector `json:"podSelector"`
}

// Rule is a rule for ingress, which has From, or for egress, which has To.
type Rule struct {
	Name      string     `json:"name,omitempty"`
	Action    string     `json:"action"`
	From      []Peer     `json:"from,omitempty"`
	To        []Peer     `json:"to,omitempty"`
	Protocols []Protocol `json:"protocols,omitempty"`
}

// Peer is the other end of a rule's traffic. Exactly one field is set; rules for ingress have only the first two.
type Peer struct {
	Namespaces  *metav1.LabelSelector `json:"namespaces,omitempty"`
	Pods        *NamespacedPod        `json:"pods,omitempty"`
	Nodes       *metav1.LabelSelector `json:"nodes,omitempty"`
	Networks    []string              `json:"networks,omitempty"`
	DomainNames []string              `json:"domainNames,omitempty"`
}

// Protocol is a protocol with its ports. Exactly one field is set.
type Protocol struct {
	TCP                  *Ports `json:"tcp,omitempty"`
	UDP                  *Ports `json:"udp,omitempty"`
	SCTP                 *Ports `json:"sctp,omitempty"`
	DestinationNamedPort string `json:"destinationNamedPort,omitempty"`
}

// Ports are the ports of one protocol.
type Ports struct {
	DestinationPort *Port `json:"destinationPort,omitempty"`
}

// Port is one port or a range. Exactly one field is set.
type Port struct {
	Number int32      `json:"number,omitempty"`
	Range  *PortRange `json:"range,omitempty"`
}

// PortRange is the ports from one to another, both included.
type PortRange struct {
	Start int32 `json:"start"`
	End   int32 `json:"end"`
}

// DeepCopyObject implements runtime.Object.
func (p *ClusterNetworkPolicy) DeepCopyObject() runtime.Object {
	return copyOf(p, &ClusterNetworkPolicy{})
}

// DeepCopyObject implements runtime.Object.
func (l *List) DeepCopyObject() runtime.Object { return copyOf(l, &List{}) }

// copyOf copies by way of JSON, which these types have in full. Informers copy nothing.
func copyOf[T runtime.Object](from, to T) runtime.Object {
	data, err := json.Marshal(from)
	if err == nil {
		err = json.Unmarshal(data, to)
	}
	if err != nil {
		panic(err) // there is nothing in them that cannot be encoded
	}
	return to
}
