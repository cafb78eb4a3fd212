package report

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Status is a node as `weftctl status` shows it. Addrs and PodCIDRs are empty until the node has some, Nodes and Pods
// until the agent has a snapshot, Drops until it is ready and while the switch cannot be read.
type Status struct {
	// APIVersion is the version of the agent's answers: see APIVersion.
	APIVersion int `json:"apiVersion"`
	// Node is the name of the Node object, Version that of the agent.
	Node    string `json:"node"`
	Version string `json:"version"`
	// Commit is what the agent was built from, "unknown" when its builder did not say.
	Commit string `json:"commit"`
	// Ready says that the agent has programmed the switch once, so that it attaches pods.
	Ready bool `json:"ready"`
	// NotReady says what the agent waits for before it is ready; empty when it is.
	NotReady string `json:"notReady,omitempty"`
	// Transport is the setting: overlay, direct or hybrid.
	Transport model.Mode          `json:"transport"`
	Tunnel    model.Encapsulation `json:"tunnelType"`
	// Encryption is wireguard, "wireguard, strict" when nothing else goes between nodes, or absent.
	Encryption string `json:"encryption,omitempty"`
	// Datapath is the setting: system (the kernel's) or netdev (userspace).
	Datapath string `json:"datapath"`
	// MTU is that of pods in bytes, from 576; 0 until the underlay's is known.
	MTU int `json:"mtu"`
	// Underlay is the link that carries the node's address; empty until it is known.
	Underlay string `json:"underlay"`
	// Addrs are the node's InternalIPs, at most one of each family, the primary one first.
	Addrs []netip.Addr `json:"addresses"`
	// PodCIDRs are the Node object's, at most one of each family.
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	Flows    Switch         `json:"flows"`
	Objects  ObjectCounts   `json:"objects"`
	// FromCopy is when the copy was made that the agent works from; absent when it works from the API server.
	FromCopy *time.Time `json:"fromCopy,omitempty"`
	// API says how current the API server's objects are, by resource; absent before the agent follows it.
	API []Feed `json:"api,omitempty"`
	// NoClusterPolicies says why there are no ClusterNetworkPolicies; absent while the API server has the kind.
	NoClusterPolicies string `json:"noClusterPolicies,omitempty"`
	// Problems are what is wrong now, each in the form "part: what"; absent when nothing is. What Flows says is not
	// repeated here.
	Problems []string `json:"problems,omitempty"`
	// Nodes are the peer nodes, by name.
	Nodes []Node `json:"nodes"`
	// Pods are the node's pods, by namespace/name.
	Pods []Pod `json:"pods"`
	// Drops are the packets dropped since the agent started, by reason.
	Drops []Drop `json:"drops"`
	// Restart are the changed settings that wait for a restart of the agent.
	Restart []Change `json:"needsRestart,omitempty"`
}

// Switch is how far the switch is programmed, and what of it is missing.
type Switch struct {
	Progress
	// Quarantined says why owners are quarantined, by the owner as users write it: pod/NAMESPACE/NAME, node/NAME.
	Quarantined map[string]string `json:"quarantined,omitempty"`
	// Conflicts describe the matches that several owners claim.
	Conflicts []string `json:"conflicts,omitempty"`
}

// ObjectCounts count the Services and policies of a node's snapshot.
type ObjectCounts struct {
	Services int `json:"services"`
	// ServicesWithProblems are those of which a part is not used, or that are quarantined. A Service that is invalid
	// as a whole counts here and not in Services.
	ServicesWithProblems int `json:"servicesWithProblems"`
	// Policies are those that select pods of this node.
	Policies int `json:"policies"`
	// PoliciesWithErrors are those that are invalid, over budget or quarantined: they isolate and allow nothing.
	PoliciesWithErrors int `json:"policiesWithErrors"`
}

// Feed is how current the objects of one resource are.
type Feed struct {
	// Resource is its plural name, as in the API's paths.
	Resource string `json:"resource"`
	// AgeSeconds is how long ago the API server last sent anything about it: an event, a bookmark or a list; before
	// the first answer, how long ago the resource was first asked for. At least 0.
	AgeSeconds float64 `json:"ageSeconds"`
	// Error says why the last list or watch failed; absent when a watch has begun since.
	Error string `json:"error,omitempty"`
}

// Node is a peer node as this one sees it.
type Node struct {
	Name string `json:"name"`
	// Transport is how packets travel to its pods: overlay, direct, ipip or wireguard; absent for an unreachable
	// node.
	Transport model.Mode `json:"transport,omitempty"`
	// Why is the reason why they travel in a tunnel although the setting asks for direct; absent otherwise.
	Why string `json:"why,omitempty"`
	// NotIPIP is the reason why they travel in another tunnel although the setting asks for IPIP; absent otherwise.
	NotIPIP string `json:"notIPIP,omitempty"`
	// NotEncrypted is the reason why they are not encrypted although the setting asks for it; absent otherwise.
	NotEncrypted string `json:"notEncrypted,omitempty"`
	// Tunnel is where packets for its pods are sent; "" when it has no address.
	Tunnel netip.Addr `json:"tunnelAddress"`
	// PodCIDRs are the Node object's, rejected ones too.
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	// Unreachable says why packets do not arrive: that there is no path to its pods, or that its gateway does not answer
	// small or full-sized packets; absent when they arrive, and while that is not known.
	Unreachable string `json:"unreachable,omitempty"`
	// RTTSeconds is how long the newest small packet to its gateway and back took, above 0; absent while there is no
	// answer, and when peer nodes are not asked.
	RTTSeconds float64 `json:"rttSeconds,omitempty"`
	// Rejected says which of its pod CIDRs are not used, and why.
	Rejected []string `json:"rejected,omitempty"`
}

// Pod is a pod of this node. A pod with several interfaces appears once for each.
type Pod struct {
	// Pod is namespace/name.
	Pod string `json:"pod"`
	// IPs and Port are empty when the pod is not attached.
	IPs  []netip.Addr `json:"ips"`
	Port string       `json:"port"`
	// OFPort is the OpenFlow number of Port, from 16; 0 when the pod is not attached.
	OFPort uint32 `json:"ofPort"`
	// Problem says what is wrong with the pod's connection; absent when nothing is.
	Problem string `json:"problem,omitempty"`
}

// Drop counts the packets and bytes that were dropped for one reason.
type Drop struct {
	Reason flows.Reason `json:"reason"`
	openflow.Stats
}

// Change is a setting that waits for a restart of the agent. Values are as in the configuration file.
type Change struct {
	Key string `json:"key"`
	Old string `json:"running"`
	New string `json:"configured"`
}

// StatusInput is what a Status is made of. Values that are not known yet are zero.
type StatusInput struct {
	Node, Version, Commit string
	Ready                 bool
	// NotReady is empty when the agent is ready, Degraded when the node can attach pods.
	NotReady, Degraded string
	// Transport is the setting; a View's replaces it.
	Transport model.Transport
	Datapath  string
	MTU       int
	Underlay  string
	// FromCopy is zero when the agent works from the API server.
	FromCopy time.Time
	// Problems are what is wrong with parts of the agent, by part.
	Problems map[string]string
	Restart  []Change
	API      []Feed
	// NoClusterPolicies says why there are no ClusterNetworkPolicies.
	NoClusterPolicies string

	// View is the newest snapshot, or nil. Without it the fields below are not used.
	View        *model.Snapshot
	Programming Programming
	// Objects says what of objects is not used.
	Objects map[model.Owner]string
	// Pods are the node's pods as the API server has them.
	Pods []model.Pod
	// Probes are what asking peer nodes came to, by name; empty when they are not asked.
	Probes map[string]Probe
	// Counts are not used before Ready. CountsErr says why they cannot be read.
	Counts    Counts
	CountsErr error
}

// NewStatus makes the status of a node.
func NewStatus(in StatusInput) Status {
	s := Status{
		Node: in.Node, Version: in.Version, Commit: in.Commit, Ready: in.Ready, NotReady: in.NotReady,
		Transport: in.Transport.Mode, Tunnel: in.Transport.Encapsulation, Datapath: in.Datapath, MTU: in.MTU,
		Underlay: in.Underlay, API: in.API, Restart: in.Restart,
		Encryption: encryption(in.Transport),
		APIVersion: APIVersion, Addrs: []netip.Addr{}, PodCIDRs: []netip.Prefix{}, Nodes: []Node{}, Pods: []Pod{},
		Drops:             []Drop{},
		NoClusterPolicies: in.NoClusterPolicies,
	}
	if !in.FromCopy.IsZero() {
		s.FromCopy = &in.FromCopy
	}
	if in.Degraded != "" {
		s.Problems = append(s.Problems, in.Degraded)
	}
	for _, part := range slices.Sorted(maps.Keys(in.Problems)) {
		s.Problems = append(s.Problems, part+": "+in.Problems[part])
	}
	if in.View == nil {
		return s
	}
	s.Transport, s.Tunnel = in.View.Transport.Mode, in.View.Transport.Encapsulation
	s.Encryption = encryption(in.View.Transport)
	s.Addrs, s.PodCIDRs = notNull(in.View.Self.Addrs), notNull(in.View.Self.PodCIDRs)
	s.Flows = newSwitch(in.Programming)
	s.Objects = objectCounts(in.View, in.Programming, in.Objects)
	s.Problems = append(s.Problems, snapshotProblems(in)...)
	s.Nodes = PeerNodes(in.View, in.Probes)
	s.Pods = pods(in.View, in.Pods, in.Programming.Quarantined)
	switch {
	case !in.Ready:
	case in.CountsErr != nil:
		s.Problems = append(s.Problems, "switch: "+in.CountsErr.Error())
	default:
		s.Drops = drops(in.Counts)
	}
	return s
}

func encryption(t model.Transport) string {
	switch {
	case t.Strict:
		return "wireguard, strict"
	case t.Encrypted:
		return "wireguard"
	}
	return ""
}

// notNull is an empty list instead of none, which JSON would call null.
func notNull[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// snapshotProblems are the problems that are not one part's.
func snapshotProblems(in StatusInput) []string {
	var list []string
	if n := in.Programming.ForeignFlows; n > 0 {
		list = append(list, fmt.Sprintf("foreign flows: %d on bridge %s are not Weft's and may outrank its own; remove them "+
			"(ovs-ofctl --strict del-flows): %s", n, model.BridgeName, strings.Join(in.Programming.Foreign, "; ")))
	}
	for _, o := range slices.SortedFunc(maps.Keys(in.Objects), model.Owner.Compare) {
		list = append(list, o.String()+": "+in.Objects[o])
	}
	if outside := in.View.OutsideClaims; outside.Pods > 0 {
		list = append(list, fmt.Sprintf("policies: they ignore addresses in the status of pods that are outside "+
			"the pod CIDRs of the pods' nodes; pods: %d, such as %s", outside.Pods, outside.Example))
	}
	return list
}

func newSwitch(p Programming) Switch {
	s := Switch{Progress: p.Progress, Quarantined: make(map[string]string, len(p.Quarantined))}
	// Of a pod's interfaces the last one counts.
	for _, o := range slices.SortedFunc(maps.Keys(p.Quarantined), model.Owner.Compare) {
		s.Quarantined[o.String()] = p.Quarantined[o]
	}
	for _, c := range p.Conflicts {
		s.Conflicts = append(s.Conflicts, describeConflict(c))
	}
	return s
}

// describeConflict names a few of the owners: thousands of policies may name one peer.
func describeConflict(c flows.Conflict) string {
	const few = 10
	list := func(owners []model.Owner) string {
		if more := len(owners) - few; more > 0 {
			return fmt.Sprintf("%v and %d more", owners[:few], more)
		}
		return fmt.Sprint(owners)
	}
	return fmt.Sprintf("%s is claimed by %s; left out are flows of %s", c.Key, list(c.Owners), list(c.Losers))
}

func objectCounts(view *model.Snapshot, p Programming, problems map[model.Owner]string) ObjectCounts {
	c := ObjectCounts{
		Services: len(view.Services), Policies: len(view.Policies),
		PoliciesWithErrors: p.CountPolicies(),
	}
	bad := map[model.Owner]bool{}
	for _, list := range []map[model.Owner]string{problems, p.Quarantined} {
		for o := range list {
			if o.Kind == model.KindService {
				bad[o] = true
			}
		}
	}
	c.ServicesWithProblems = len(bad)
	return c
}

// Probe is what asking a peer node came to.
type Probe struct {
	// RTT is that of the newest answer; 0 for none.
	RTT time.Duration
	// Problem says what does not arrive; empty when everything does, and while that is not known.
	Problem string
}

// PeerNodes are the peer nodes of a snapshot, by name, with what asking them came to.
func PeerNodes(view *model.Snapshot, probes map[string]Probe) []Node {
	list := []Node{}
	for _, name := range slices.Sorted(maps.Keys(view.Nodes)) {
		n := view.Nodes[name]
		r := Node{Name: name, Tunnel: n.Primary(), PodCIDRs: notNull(n.PodCIDRs)}
		path := view.Paths[name]
		r.Unreachable, r.Rejected = path.Unreachable, path.Rejected
		if path.Reachable() {
			r.Transport, r.Why, r.NotIPIP, r.NotEncrypted = path.Mode, path.Why, path.NotIPIP, path.NotEncrypted
			r.Tunnel, r.Unreachable, r.RTTSeconds = path.NextHop, probes[name].Problem, probes[name].RTT.Seconds()
		}
		list = append(list, r)
	}
	return list
}

// pods compares the attached pods with those that the API server has.
func pods(view *model.Snapshot, known []model.Pod, quarantined map[model.Owner]string) []Pod {
	byRef := map[string]model.Pod{}
	for _, p := range known {
		byRef[p.String()] = p
	}
	list := []Pod{}
	attached := map[string]bool{}
	for _, att := range view.Attachments {
		ref := att.Pod.String()
		attached[ref] = true
		r := Pod{Pod: ref, IPs: notNull(att.IPs), Port: att.HostIfName, OFPort: att.OFPort,
			Problem: quarantined[model.PodOwner(att)]}
		if p, ok := byRef[ref]; r.Problem == "" && (!ok || att.Pod.UID != "" && p.UID != att.Pod.UID) {
			r.Problem = "the API server does not know this pod; the container runtime has not deleted its sandbox yet, and " +
				map[bool]string{true: "it is closed", false: "its last policies apply"}[view.Unknown[att.Key()]]
		}
		if r.Problem == "" && view.Unknown[att.Key()] {
			r.Problem = "closed until all policies of its namespace are known"
		}
		list = append(list, r)
	}
	for ref, p := range byRef {
		if !p.HostNetwork && !p.Done() && !attached[ref] {
			list = append(list, Pod{
				Pod:     ref,
				IPs:     []netip.Addr{},
				Problem: "not attached: the container runtime has not called weft-cni, or it failed (kubectl describe pod)",
			})
		}
	}
	slices.SortFunc(list, func(x, y Pod) int { return cmp.Or(cmp.Compare(x.Pod, y.Pod), cmp.Compare(x.Port, y.Port)) })
	return list
}

func drops(c Counts) []Drop {
	list := []Drop{}
	for _, reason := range slices.Sorted(maps.Keys(c.Drops)) {
		list = append(list, Drop{reason, c.Drops[reason]})
	}
	return list
}
