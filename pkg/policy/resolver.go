package policy

import (
	"iter"
	"net/netip"
	"reflect"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/share"
)

// Resolver holds what Resolve gives, and follows changes. What a change costs depends on what becomes different by it: a pod's
// new label reaches the selections that it enters or leaves, and the policies that ask for these. What policies that are about
// none of this node's pods ask for is not even kept.
//
// Changes may come in any order, and about things that are not known yet.
type Resolver struct {
	node     string
	pods     map[podName]*podState
	byNode   map[string]map[*podState]bool
	podCIDRs map[string][]netip.Prefix // the accepted ones, by node
	outside  map[podName][]netip.Addr  // what pods claim outside of these
	// outsideClaims sums them up, unless outsideDirty says that they have changed since.
	outsideClaims model.OutsideClaims
	outsideDirty  bool
	namespaces    map[string]*namespaceState
	attachments   map[model.AttachmentKey]*attachmentState
	byPod         map[podName][]*attachmentState
	claims        map[netip.Addr][]claim
	byLabel       map[label][]*podState

	scopes     map[scopeKey]*scope
	matching   map[*scope]bool // those of matchingScope
	selections map[queryKey]*selection

	policies map[string]*policyState
	ids      *ids
	byKey    map[string]*policyState // whose rule a key is

	// flows is how many all policies may take, room how many they may have; over are those that have none.
	flows, room int
	over        map[string]bool

	// What Flush has to look at: policies, and attachments whose pods may have become known or unknown.
	dirty   map[*policyState]bool
	recheck map[model.AttachmentKey]bool
	unknown map[model.AttachmentKey]bool // as of the last Flush
}

// policyState is a policy with what it comes to for this node.
type policyState struct {
	plan
	gone bool
	held map[*selection]bool
	// active says that it is about pods of this node: then resolved is what they are told of it, and keys its rules' names.
	active   bool
	resolved model.Policy
	keys     []string
	// flows is how many it may take if it fits; 0 when it is not active.
	flows int
}

// Changes is what is different since the last Flush.
type Changes struct {
	// Policies are by namespace/name; nil are those that are about no pod of this node any more.
	Policies map[string]*model.Policy
	// Unknown are attachments whose pod is not known any more (true), or is known now or gone with its attachment (false).
	Unknown map[model.AttachmentKey]bool
}

// NewResolver gives the resolver of the named node.
func NewResolver(node string) *Resolver { return NewBoundedResolver(node, maxNodeFlows) }

// NewBoundedResolver returns a Resolver whose policies may take this many flows together.
func NewBoundedResolver(node string, flows int) *Resolver { return newResolver(node, hashKey, flows) }

func newResolver(node string, hash func(string) uint32, room int) *Resolver {
	return &Resolver{
		node: node, room: room, pods: map[podName]*podState{}, byNode: map[string]map[*podState]bool{},
		podCIDRs: map[string][]netip.Prefix{},
		outside:  map[podName][]netip.Addr{}, namespaces: map[string]*namespaceState{},
		attachments: map[model.AttachmentKey]*attachmentState{}, byPod: map[podName][]*attachmentState{},
		claims: map[netip.Addr][]claim{}, byLabel: map[label][]*podState{},
		scopes: map[scopeKey]*scope{}, matching: map[*scope]bool{}, selections: map[queryKey]*selection{},
		policies: map[string]*policyState{}, ids: newIDs(hash), byKey: map[string]*policyState{},
		dirty: map[*policyState]bool{}, recheck: map[model.AttachmentKey]bool{}, unknown: map[model.AttachmentKey]bool{},
	}
}

// SetPolicy says what a policy is now.
func (r *Resolver) SetPolicy(policy Policy) {
	s := r.policies[policy.ID()]
	switch {
	case s == nil:
		s = &policyState{held: map[*selection]bool{}}
		r.policies[policy.ID()] = s
		r.namespace(policy.Namespace).policies[s] = true
	case !s.gone && reflect.DeepEqual(s.policy, policy):
		return
	}
	s.plan, s.gone = newPlan(policy), false
	s.held[r.acquire(s.subject, s)] = true // what it held before is let go when it is resolved
	r.dirty[s] = true
}

// DeletePolicy says that a policy is gone.
func (r *Resolver) DeletePolicy(namespace, name string) {
	if s := r.policies[Policy{Namespace: namespace, Name: name}.ID()]; s != nil {
		s.gone, r.dirty[s] = true, true
	}
}

// Flush resolves what changes were about since the last time, and says what is different.
func (r *Resolver) Flush() Changes {
	c := Changes{Policies: map[string]*model.Policy{}, Unknown: map[model.AttachmentKey]bool{}}
	for key := range r.recheck {
		a := r.attachments[key]
		if is := a != nil && a.pod == nil; is != r.unknown[key] {
			c.Unknown[key] = is
			if is {
				r.unknown[key] = true
			} else {
				delete(r.unknown, key)
			}
		}
	}
	clear(r.recheck)
	before := map[*policyState]*model.Policy{}
	note := func(s *policyState) {
		if _, seen := before[s]; seen {
			return
		}
		before[s] = nil
		if s.active {
			was := s.resolved
			before[s] = &was
		}
	}
	fresh := make(map[*policyState]*resolution, len(r.dirty))
	for s := range r.dirty {
		fresh[s] = r.resolve(s)
	}
	r.budget(fresh)
	for s, now := range fresh {
		note(s)
		r.take(s, now, func(key string) {
			if other := r.byKey[key]; other != nil {
				note(other)
			}
		})
	}
	clear(r.dirty)
	for s, was := range before {
		name := s.policy.ID()
		switch {
		case s.active:
			s.resolved = number(s.resolved, s.keys, r.ids)
			if was == nil || !equalPolicies(*was, s.resolved) {
				now := s.resolved
				c.Policies[name] = &now
			}
		case was != nil:
			c.Policies[name] = nil
		}
	}
	return c
}

// resolution is what a policy comes to for this node, less the rules' ids.
type resolution struct {
	policy model.Policy
	keys   []string
	active bool
}

// resolve finds out anew what a policy comes to, and counts its flows. The result is nil when all policies together are
// over budget: not all of what they come to may be held at once.
func (r *Resolver) resolve(s *policyState) *resolution {
	now := &resolution{}
	switch {
	case s.gone:
		r.hold(s, nil)
		delete(r.policies, s.policy.ID())
		n := r.namespace(s.policy.Namespace)
		delete(n.policies, s)
		r.forget(n)
	case len(r.selections[s.subject.key].members) == 0:
		r.hold(s, []query{s.subject})
		s.expand(false)
	default:
		r.hold(s, s.queries())
		now = r.resolveWithout(s, "")
	}
	r.flows -= s.flows
	if s.flows = 0; now.active {
		s.flows = countFlows(now.policy)
	}
	r.flows += s.flows
	if now.active && r.flows > r.room {
		s.expand(false)
		return nil
	}
	return now
}

// resolveWithout resolves a policy, without its rules when why says so.
func (r *Resolver) resolveWithout(s *policyState, why string) *resolution {
	now := &resolution{}
	now.policy, now.keys, now.active = s.plan.resolve(r, r.namespace(s.policy.Namespace).Log, why)
	return now
}

// budget decides which policies fit, and completes the policies that are resolved anew: by those of which it decides
// something else now, and by those that resolve gave up.
func (r *Resolver) budget(fresh map[*policyState]*resolution) {
	var over map[string]bool
	if r.flows > r.room {
		flows := make(map[string]int, len(r.policies))
		for name, s := range r.policies {
			if s.flows > 0 {
				flows[name] = s.flows
			}
		}
		over = share.Overflow(flows, r.room)
	}
	for name := range over {
		if s := r.policies[name]; !r.over[name] {
			fresh[s] = nil
		}
	}
	for name := range r.over {
		if s := r.policies[name]; s != nil && s.flows > 0 && !over[name] {
			fresh[s] = nil
		}
	}
	r.over = over
	for s, now := range fresh {
		switch {
		case !s.gone && over[s.policy.ID()]:
			now = r.resolveWithout(s, overBudgetError(s.flows, r.room))
			now.policy.OverBudget = true
			fresh[s] = now
		case now == nil:
			fresh[s] = r.resolveWithout(s, "")
		}
	}
}

// take makes a resolution the policy's. moved is told of rules, its own and others', that get another id.
func (r *Resolver) take(s *policyState, now *resolution, moved func(key string)) {
	s.active, s.resolved = now.active, now.policy
	for _, key := range s.keys {
		if !slices.Contains(now.keys, key) {
			r.ids.remove(key, moved)
			delete(r.byKey, key)
		}
	}
	for _, key := range now.keys {
		r.byKey[key] = s
		r.ids.add(key, moved)
	}
	s.keys = now.keys
}

// queries are all that a policy asks.
func (p *plan) queries() []query {
	all := []query{p.subject}
	for _, side := range p.sides {
		for _, rule := range side.rules {
			all = append(append(all, rule.selected...), rule.named...)
		}
	}
	return all
}

// hold makes these the queries that a policy's selections answer.
func (r *Resolver) hold(s *policyState, queries []query) {
	now := make(map[*selection]bool, len(queries))
	for _, q := range queries {
		now[r.acquire(q, s)] = true
	}
	for old := range s.held {
		if !now[old] {
			r.release(old, s)
		}
	}
	s.held = now
}

// prefixes and views make the Resolver a source.
func (r *Resolver) prefixes(q query) []netip.Prefix { return r.selections[q.key].prefixes() }

func (r *Resolver) views(q query) iter.Seq[*view] {
	return func(yield func(*view) bool) {
		for p := range r.selections[q.key].members {
			if !yield(p.view) {
				return
			}
		}
	}
}

func equalPolicies(a, b model.Policy) bool {
	return a.Name == b.Name && a.Log == b.Log && a.Err == b.Err && equalSides(a.Ingress, b.Ingress) && equalSides(a.Egress, b.Egress)
}

func equalSides(a, b *model.PolicySide) bool {
	if a == nil || b == nil {
		return a == b
	}
	return slices.Equal(a.Pods, b.Pods) && slices.EqualFunc(a.Rules, b.Rules, func(a, b model.PolicyRule) bool {
		return a.Index == b.Index && a.ID == b.ID && a.AnyPeer == b.AnyPeer && a.AnyPort == b.AnyPort &&
			slices.Equal(a.Pods, b.Pods) && same(a.Peers, b.Peers) && slices.Equal(a.Ports, b.Ports)
	})
}

// same compares lists that are mostly one and the same.
func same(a, b []netip.Prefix) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b))
}
