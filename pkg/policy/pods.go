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

// podState is a pod that the API server has reported.
type podState struct {
	Pod
	deleted bool
	// gone reports that the API server has the pod no longer.
	gone bool
	// attached reports that the pod has an attachment on this node.
	attached bool
	// claimed are the addresses of its status that count.
	claimed []netip.Addr
	// view is the pod as selections see it; nil while it has no address.
	view *podView
}

// attachmentState is an attachment on this node and its pod, if that is known.
type attachmentState struct {
	model.Attachment
	pod *podState
}

// claim is a claim to an address: by an attachment, or by a pod's status.
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

// owner is the pod that has the address, or nil.
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

// SetPod adds or replaces a pod. Idempotent.
func (r *Resolver) SetPod(p Pod) {
	name := podName{p.Namespace, p.Name}
	s := r.pods[name]
	if s == nil {
		s = &podState{}
		r.pods[name] = s
	} else if s.gone = false; s.Equal(p) {
		return
	}
	r.applyPodChange(name, p.Addrs, func() {
		r.leaveNode(s)
		s.Pod = p
		if r.byNode[p.Node] == nil {
			r.byNode[p.Node] = map[*podState]bool{}
		}
		r.byNode[p.Node][s] = true
	})
}

// DeletePod deletes a pod that the API server has no longer. A pod that is attached at the next Flush stays as it was,
// with its policies, because its processes run: until its attachment is deleted or another pod takes its name.
// Idempotent.
func (r *Resolver) DeletePod(namespace, name string) {
	if s := r.pods[podName{namespace, name}]; s != nil {
		s.gone, r.gone[s] = true, true
	}
}

// dropGone drops the deleted pods that are not attached.
func (r *Resolver) dropGone() {
	for s := range r.gone {
		if s.gone && s.attached {
			continue
		}
		delete(r.gone, s)
		if s.gone {
			r.dropPod(s)
		}
	}
}

func (r *Resolver) dropPod(s *podState) {
	name := podName{s.Namespace, s.Name}
	r.applyPodChange(name, nil, func() {
		r.leaveNode(s)
		s.deleted = true
	})
	delete(r.pods, name)
}

func (r *Resolver) leaveNode(p *podState) {
	delete(r.byNode[p.Node], p)
	if len(r.byNode[p.Node]) == 0 {
		delete(r.byNode, p.Node)
	}
}

// SetPodCIDRs sets the accepted pod CIDRs of a node; addresses in its pods' status count only inside them. It costs as
// much as the node has pods. Idempotent.
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
		r.applyPodChange(podName{p.Namespace, p.Name}, nil, func() {})
	}
}

// OutsideClaims counts the pods with addresses in their status that do not count because they are outside the pod CIDRs
// of the pods' nodes, with the first by name as an example. Only the first call after a change costs anything.
func (r *Resolver) OutsideClaims() model.OutsideClaims {
	if !r.outsideDirty {
		return r.outsideClaims
	}
	out := model.OutsideClaims{Pods: len(r.outside)}
	var first podName
	for name := range r.outside {
		if first == (podName{}) ||
			cmp.Or(cmp.Compare(name.namespace, first.namespace), cmp.Compare(name.name, first.name)) < 0 {
			first = name
		}
	}
	if p := r.pods[first]; p != nil {
		out.Example = fmt.Sprintf("%s/%s on node %s: %v", first.namespace, first.name, p.Node, r.outside[first])
	}
	r.outsideClaims, r.outsideDirty = out, false
	return out
}

// SetAttachment adds or replaces an attachment on this node. Idempotent.
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
	r.applyPodChange(name, a.IPs, func() {
		s := &attachmentState{Attachment: a}
		r.attachments[key] = s
		r.byPod[name] = append(r.byPod[name], s)
		r.claim(claim{attachment: s}, a.IPs)
	})
	r.recheck[key] = true
}

// DeleteAttachment deletes an attachment. Idempotent.
func (r *Resolver) DeleteAttachment(key model.AttachmentKey) {
	s := r.attachments[key]
	if s == nil {
		return
	}
	name := podName{s.Pod.Namespace, s.Pod.Name}
	r.applyPodChange(name, s.IPs, func() {
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

// applyPodChange applies a change to a pod or its attachments, with the addresses it concerns, and then refreshes the
// view of all pods whose addresses may differ: the pod itself, and pods that lose an address to it or get one back.
func (r *Resolver) applyPodChange(name podName, addrs []netip.Addr, do func()) {
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
	r.linkAttachments(name, p)
	for _, a := range addrs {
		affected[r.owner(a)] = true
	}
	affected[p] = true
	delete(affected, nil)
	for p := range affected {
		r.refreshView(p)
	}
}

// linkAttachments updates which attachments are the pod's, and the addresses that it claims by its status.
func (r *Resolver) linkAttachments(name podName, p *podState) {
	attached := false
	for _, a := range r.byPod[name] {
		pod := p
		if p == nil || p.deleted || !p.isAttached(a.Attachment) {
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
	if !p.deleted {
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

// refreshView computes the pod's view and updates the selections.
func (r *Resolver) refreshView(p *podState) {
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
		r.updateMemberships(p, nil)
		return
	}
	r.updateMemberships(p, newPodView(p.Pod, addrs, p.attached))
}

// Equal reports whether two states of a pod are the same for policies.
func (a Pod) Equal(b Pod) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && a.UID == b.UID && a.Node == b.Node &&
		maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.Ports, b.Ports) &&
		a.HostNetwork == b.HostNetwork && a.Done == b.Done && a.Terminating == b.Terminating && a.Created == b.Created
}

// SetNamespace adds or replaces a namespace. Idempotent.
func (r *Resolver) SetNamespace(n Namespace) {
	s := r.namespace(n.Name)
	if s.known && reflect.DeepEqual(s.Namespace, n) {
		return
	}
	if s.Log != n.Log {
		r.markPoliciesDirty(s)
	}
	s.Namespace, s.known = n, true
	r.updateScopes(s)
}

// DeleteNamespace deletes a namespace. Idempotent.
func (r *Resolver) DeleteNamespace(name string) {
	s := r.namespaces[name]
	if s == nil || !s.known {
		return
	}
	if s.Log {
		r.markPoliciesDirty(s)
	}
	s.Namespace, s.known = Namespace{Name: name}, false
	r.updateScopes(s)
	r.dropUnused(s)
}

// markPoliciesDirty marks the namespace's policies dirty.
func (r *Resolver) markPoliciesDirty(n *namespaceState) {
	for p := range n.policies {
		r.dirty[p] = true
	}
}
