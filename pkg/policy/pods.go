package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// podName is a pod's namespace and name.
type podName struct{ namespace, name string }

// podState is a pod that the API server knows.
type podState struct {
	Pod
	gone bool
	// attached says that it has an attachment on this node.
	attached bool
	// claimed are the addresses that it claims by its status.
	claimed []netip.Addr
	// view is what selections see of it; nil when it has no address.
	view *view
}

// attachmentState is an attachment on this node and the pod that it is of, if that is known.
type attachmentState struct {
	model.Attachment
	pod *podState
}

// claim is somebody who claims an address: an attachment, or else a pod by its status.
type claim struct {
	attachment *attachmentState
	pod        *podState
}

func (c claim) before(d claim) bool {
	switch {
	case c.attachment != nil && d.attachment != nil:
		return compareAttachments(c.attachment.Attachment, d.attachment.Attachment) < 0
	case c.attachment != nil || d.attachment != nil:
		return c.attachment != nil
	}
	return compareClaims(c.pod.Pod, d.pod.Pod) < 0
}

// owner is the pod that an address belongs to, or nil.
func (r *Resolver) owner(a netip.Addr) *podState {
	var best claim
	for i, c := range r.claims[a] {
		if i == 0 || c.before(best) {
			best = c
		}
	}
	if best.attachment != nil {
		return best.attachment.pod
	}
	return best.pod
}

func (r *Resolver) claim(c claim, addrs []netip.Addr) {
	for _, a := range addrs {
		if !slices.Contains(r.claims[a], c) {
			r.claims[a] = append(r.claims[a], c)
		}
	}
}

func (r *Resolver) disclaim(c claim, addrs []netip.Addr) {
	for _, a := range addrs {
		rest := slices.DeleteFunc(r.claims[a], func(d claim) bool { return d == c })
		if len(rest) == 0 {
			delete(r.claims, a)
		} else {
			r.claims[a] = rest
		}
	}
}

// SetPod says what a pod is now.
func (r *Resolver) SetPod(p Pod) {
	name := podName{p.Namespace, p.Name}
	s := r.pods[name]
	if s == nil {
		s = &podState{}
		r.pods[name] = s
	} else if s.Equal(p) {
		return
	}
	r.turn(name, p.Addrs, func() {
		r.leaveNode(s)
		s.Pod = p
		if r.byNode[p.Node] == nil {
			r.byNode[p.Node] = map[*podState]bool{}
		}
		r.byNode[p.Node][s] = true
	})
}

// DeletePod says that a pod is gone from the API.
func (r *Resolver) DeletePod(namespace, name string) {
	s := r.pods[podName{namespace, name}]
	if s == nil {
		return
	}
	r.turn(podName{namespace, name}, nil, func() {
		r.leaveNode(s)
		s.gone = true
	})
	delete(r.pods, podName{namespace, name})
}

func (r *Resolver) leaveNode(p *podState) {
	delete(r.byNode[p.Node], p)
	if len(r.byNode[p.Node]) == 0 {
		delete(r.byNode, p.Node)
	}
}

// SetPodCIDRs sets the accepted pod CIDRs of a node, which its pods' addresses must be in. It costs as much as the node
// has pods.
func (r *Resolver) SetPodCIDRs(node string, podCIDRs []netip.Prefix) {
	if slices.Equal(r.podCIDRs[node], podCIDRs) {
		return
	}
	if len(podCIDRs) == 0 {
		delete(r.podCIDRs, node)
	} else {
		r.podCIDRs[node] = podCIDRs
	}
	for p := range r.byNode[node] {
		r.turn(podName{p.Namespace, p.Name}, nil, func() {})
	}
}

// OutsideClaims returns how many pods have addresses in their status that do not count because they are outside the pod
// CIDRs of the pods' nodes, and names the first by name. Only the first call after a change of these costs anything.
func (r *Resolver) OutsideClaims() model.OutsideClaims {
	if !r.outsideDirty {
		return r.outsideClaims
	}
	out := model.OutsideClaims{Pods: len(r.outside)}
	var first podName
	for name := range r.outside {
		if first == (podName{}) || cmp.Or(cmp.Compare(name.namespace, first.namespace), cmp.Compare(name.name, first.name)) < 0 {
			first = name
		}
	}
	if p := r.pods[first]; p != nil {
		out.Example = fmt.Sprintf("%s/%s on node %s: %v", first.namespace, first.name, p.Node, r.outside[first])
	}
	r.outsideClaims, r.outsideDirty = out, false
	return out
}

// SetAttachment says that a pod is attached to this node.
func (r *Resolver) SetAttachment(a model.Attachment) {
	key := a.Key()
	if old := r.attachments[key]; old != nil {
		if old.Pod == a.Pod && slices.Equal(old.IPs, a.IPs) {
			old.Attachment = a
			return
		}
		r.DeleteAttachment(key)
	}
	name := podName{a.Pod.Namespace, a.Pod.Name}
	r.turn(name, a.IPs, func() {
		s := &attachmentState{Attachment: a}
		r.attachments[key] = s
		r.byPod[name] = append(r.byPod[name], s)
		r.claim(claim{attachment: s}, a.IPs)
	})
	r.recheck[key] = true
}

// DeleteAttachment says that an attachment is gone.
func (r *Resolver) DeleteAttachment(key model.AttachmentKey) {
	s := r.attachments[key]
	if s == nil {
		return
	}
	name := podName{s.Pod.Namespace, s.Pod.Name}
	r.turn(name, s.IPs, func() {
		r.disclaim(claim{attachment: s}, s.IPs)
		delete(r.attachments, key)
		rest := slices.DeleteFunc(r.byPod[name], func(other *attachmentState) bool { return other == s })
		if len(rest) == 0 {
			delete(r.byPod, name)
		} else {
			r.byPod[name] = rest
		}
	})
	r.recheck[key] = true
}

// turn makes a change of a pod or its attachments, which may be about some addresses, and shows everybody anew whose addresses
// may be others now: the pod, and those who lose an address to it or get one back.
func (r *Resolver) turn(name podName, addrs []netip.Addr, do func()) {
	p := r.pods[name]
	addrs = slices.Clone(addrs)
	if p != nil {
		addrs = append(append(addrs, p.claimed...), p.Addrs...)
	}
	for _, a := range r.byPod[name] {
		addrs = append(addrs, a.IPs...)
	}
	affected := map[*podState]bool{}
	for _, a := range addrs {
		affected[r.owner(a)] = true
	}
	do()
	r.relate(name, p)
	for _, a := range addrs {
		affected[r.owner(a)] = true
	}
	affected[p] = true
	delete(affected, nil)
	for p := range affected {
		r.review(p)
	}
}

// relate finds out which attachments are the pod's, and what it claims by its status.
func (r *Resolver) relate(name podName, p *podState) {
	attached := false
	for _, a := range r.byPod[name] {
		pod := p
		if p == nil || p.gone || !p.isAttached(a.Attachment) {
			pod = nil
		}
		attached = attached || pod != nil
		if a.pod != pod {
			a.pod = pod
			r.recheck[a.Key()] = true
		}
	}
	if p == nil {
		return
	}
	p.attached = attached
	var claimed, outside []netip.Addr
	if !p.gone {
		claimed, outside = p.claims(r.node, attached, r.podCIDRs[p.Node])
	}
	if old, had := r.outside[name]; had || len(outside) > 0 {
		r.outsideDirty = r.outsideDirty || !slices.Equal(old, outside)
		if len(outside) > 0 {
			r.outside[name] = outside
		} else {
			delete(r.outside, name)
		}
	}
	r.disclaim(claim{pod: p}, p.claimed)
	r.claim(claim{pod: p}, claimed)
	p.claimed = claimed
}

// review shows selections what a pod is now.
func (r *Resolver) review(p *podState) {
	var addrs []netip.Addr
	own := func(candidates []netip.Addr) {
		for _, a := range candidates {
			if r.owner(a) == p {
				addrs = append(addrs, a)
			}
		}
	}
	own(p.claimed)
	for _, a := range r.byPod[podName{p.Namespace, p.Name}] {
		own(a.IPs)
	}
	if len(addrs) == 0 {
		r.show(p, nil)
		return
	}
	r.show(p, newView(p.Pod, addrs, p.attached))
}

// Equal says whether policies see no difference between two states of a pod.
func (a Pod) Equal(b Pod) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && a.UID == b.UID && a.Node == b.Node && maps.Equal(a.Labels, b.Labels) &&
		slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.Ports, b.Ports) && a.HostNetwork == b.HostNetwork && a.Done == b.Done &&
		a.Terminating == b.Terminating && a.Created == b.Created
}

// SetNamespace says what a namespace is now.
func (r *Resolver) SetNamespace(n Namespace) {
	s := r.namespace(n.Name)
	if s.known && reflect.DeepEqual(s.Namespace, n) {
		return
	}
	if s.Log != n.Log {
		r.touch(s)
	}
	s.Namespace, s.known = n, true
	r.rescope(s)
}

// DeleteNamespace says that a namespace is gone.
func (r *Resolver) DeleteNamespace(name string) {
	s := r.namespaces[name]
	if s == nil || !s.known {
		return
	}
	if s.Log {
		r.touch(s)
	}
	s.Namespace, s.known = Namespace{Name: name}, false
	r.rescope(s)
	r.forget(s)
}

// touch says that a namespace's policies may be others now.
func (r *Resolver) touch(n *namespaceState) {
	for p := range n.policies {
		r.dirty[p] = true
	}
}
