package policy

import (
	"iter"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// Resolver has the same result as Resolve, and follows changes. A change costs as much as its effects: a pod's new
// label updates the selections that it enters or leaves, and the policies that use these. Selections of policies that
// select no pods of this node are not kept.
//
// Changes may come in any order, and refer to objects that are not known yet.
type Resolver struct {
	node     string
	pods     map[podName]*podState
	gone     map[*podState]bool // those that DeletePod was told of and that may be attached
	byNode   map[string]map[*podState]bool
	podCIDRs map[string][]netip.Prefix // accepted, by node
	outside  map[podName][]netip.Addr  // addresses that pods claim outside of these
	// outsideClaims is their summary, outdated while outsideDirty is set.
	outsideClaims model.OutsideClaims
	outsideDirty  bool
	namespaces    map[string]*namespaceState
	attachments   map[model.AttachmentKey]*attachmentState
	byPod         map[podName][]*attachmentState
	claims        map[netip.Addr][]claim
	byLabel       map[label][]*podState

	scopes     map[scopeKey]*scope
	matching   map[*scope]bool // the scopes of kind matchingScope
	selections map[queryKey]*selection

	policies map[model.PolicyID]*policyState
	ids      *ids
	byKey    map[string]*policyState // by rule key

	// flows is the sum of the policies' flows, room its limit; overBudget are the policies without room.
	flows, room int
	overBudget  map[model.PolicyID]bool

	nodeObjects map[string]Node
	names       map[string]model.LearnedName
	// unranked says that the places of policies have changed since their ranks were assigned.
	unranked bool

	// Input of the next Flush: policies, and attachments whose pods may have become known or unknown.
	dirty   map[*policyState]bool
	recheck map[model.AttachmentKey]bool
	unknown map[model.AttachmentKey]bool // as of the last Flush
}

// policyState is a policy and its resolution for this node.
type policyState struct {
	parsedPolicy
	deleted      bool
	dependencies map[*selection]bool
	// active reports that the policy selects pods of this node; resolved is then its resolution, and keys are its
	// rules' keys.
	active   bool
	resolved model.Policy
	keys     []string
	// flows is the number of its flows if it is within budget; 0 when it is not active.
	flows int
	// placed is the place for which it has its rank; the zero place when it has none.
	placed place
	rank   int
}

// Changes are the differences since the last Flush.
type Changes struct {
	// Policies are nil where they no longer select pods of this node.
	Policies map[model.PolicyID]*model.Policy
	// Unknown is true for attachments whose pod has become unknown, and false for those whose pod has become known or
	// that were deleted.
	Unknown map[model.AttachmentKey]bool
}

// NewResolver returns the resolver of the named node.
func NewResolver(node string) *Resolver { return NewBoundedResolver(node, maxNodeFlows) }

// NewBoundedResolver returns a Resolver whose policies may take this many flows together.
func NewBoundedResolver(node string, flows int) *Resolver { return newResolver(node, hashKey, flows) }

func newResolver(node string, hash func(string) uint32, room int) *Resolver {
	return &Resolver{
		node: node, room: room, pods: map[podName]*podState{}, gone: map[*podState]bool{},
		byNode:   map[string]map[*podState]bool{},
		podCIDRs: map[string][]netip.Prefix{},
		outside:  map[podName][]netip.Addr{}, namespaces: map[string]*namespaceState{},
		attachments: map[model.AttachmentKey]*attachmentState{}, byPod: map[podName][]*attachmentState{},
		claims: map[netip.Addr][]claim{}, byLabel: map[label][]*podState{},
		scopes: map[scopeKey]*scope{}, matching: map[*scope]bool{}, selections: map[queryKey]*selection{},
		policies: map[model.PolicyID]*policyState{}, nodeObjects: map[string]Node{},
		names: map[string]model.LearnedName{}, ids: newIDs(hash),
		byKey: map[string]*policyState{}, dirty: map[*policyState]bool{}, recheck: map[model.AttachmentKey]bool{},
		unknown: map[model.AttachmentKey]bool{},
	}
}

// SetPolicy adds or replaces a policy and marks it dirty. Idempotent.
func (r *Resolver) SetPolicy(policy Policy) {
	s := r.policies[policy.ID()]
	switch {
	case s == nil:
		s = &policyState{dependencies: map[*selection]bool{}}
		r.policies[policy.ID()] = s
		r.namespace(policy.Namespace).policies[s] = true
	case !s.deleted && reflect.DeepEqual(s.policy, policy):
		return
	}
	s.parsedPolicy, s.deleted = parsePolicy(policy), false
	s.dependencies[r.acquire(s.subject, s)] = true // old dependencies are released when it is resolved
	r.dirty[s] = true
}

// DeletePolicy deletes a policy and marks it dirty. Idempotent.
func (r *Resolver) DeletePolicy(id model.PolicyID) {
	if s := r.policies[id]; s != nil {
		s.deleted, r.dirty[s] = true, true
	}
}

// SetNode adds or replaces a node, and marks the policies dirty that have nodes as peers. Idempotent.
func (r *Resolver) SetNode(n Node) {
	if old, ok := r.nodeObjects[n.Name]; ok && reflect.DeepEqual(old, n) {
		return
	}
	r.nodeObjects[n.Name] = n
	r.nodesChanged()
}

// DeleteNode deletes a node. Idempotent.
func (r *Resolver) DeleteNode(name string) {
	if _, ok := r.nodeObjects[name]; ok {
		delete(r.nodeObjects, name)
		r.nodesChanged()
	}
}

// nodesChanged looks at all policies: nodes rarely change in what policies see of them.
func (r *Resolver) nodesChanged() {
	for _, s := range r.policies {
		if s.active && s.usesNodes() {
			r.dirty[s] = true
		}
	}
}

func (p *parsedPolicy) usesNodes() bool {
	return p.hasRule(func(r parsedRule) bool { return len(r.nodes) > 0 })
}

func (p *parsedPolicy) hasRule(is func(parsedRule) bool) bool {
	return slices.ContainsFunc(p.sides, func(s parsedSide) bool { return slices.ContainsFunc(s.rules, is) })
}

// SetName says what was learned of a domain name, and marks the policies dirty that have it as a peer. Nothing learned
// deletes it. Idempotent.
func (r *Resolver) SetName(name string, learned model.LearnedName) {
	if r.names[name].Equal(learned) {
		return
	}
	if learned.Empty() {
		delete(r.names, name)
	} else {
		r.names[name] = learned
	}
	uses := func(rule parsedRule) bool {
		return slices.ContainsFunc(rule.domains, func(d Domain) bool { return d.Matches(name) })
	}
	for _, s := range r.policies {
		if s.active && s.hasRule(uses) {
			r.dirty[s] = true
		}
	}
}

// Flush resolves the dirty policies, enforces the budget, and returns the differences since the last Flush.
func (r *Resolver) Flush() Changes {
	r.dropGone()
	c := Changes{Policies: map[model.PolicyID]*model.Policy{}, Unknown: map[model.AttachmentKey]bool{}}
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
	r.enforceBudget(fresh)
	for s, now := range fresh {
		note(s)
		r.apply(s, now, func(key string) {
			if other := r.byKey[key]; other != nil {
				note(other)
			}
		})
	}
	clear(r.dirty)
	r.assignRanks(note)
	for s, was := range before {
		name := s.policy.ID()
		switch {
		case s.active:
			s.resolved = assignIDs(s.resolved, s.keys, r.ids)
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

// resolution is a policy's resolution for this node, without the rules' ids.
type resolution struct {
	policy model.Policy
	keys   []string
	active bool
}

// resolve resolves a policy and counts its flows. The result is nil while all policies together are over budget,
// because their resolutions together may not fit into memory.
func (r *Resolver) resolve(s *policyState) *resolution {
	now := &resolution{}
	switch {
	case s.deleted:
		r.setDependencies(s, nil)
		delete(r.policies, s.policy.ID())
		n := r.namespace(s.policy.Namespace)
		delete(n.policies, s)
		r.dropUnused(n)
	case len(r.selections[s.subject.key].members) == 0:
		r.setDependencies(s, []query{s.subject})
		s.expand(false)
	default:
		r.setDependencies(s, s.queries())
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

// resolveWithout resolves a policy; a non-empty reason leaves out its rules.
func (r *Resolver) resolveWithout(s *policyState, why string) *resolution {
	now := &resolution{}
	now.policy, now.keys, now.active = s.parsedPolicy.resolve(r, r.namespace(s.policy.Namespace).Log, why)
	return now
}

// enforceBudget decides which policies are over budget, and completes fresh: with policies for which that changes, and
// with those that resolve left nil.
func (r *Resolver) enforceBudget(fresh map[*policyState]*resolution) {
	var overBudget map[model.PolicyID]bool
	if r.flows > r.room {
		flows := make(map[model.PolicyID]demand, len(r.policies))
		for name, s := range r.policies {
			if s.flows > 0 {
				flows[name] = demand{s.flows, s.policy.Staged}
			}
		}
		overBudget = overflow(flows, r.room)
	}
	for name := range overBudget {
		if s := r.policies[name]; !r.overBudget[name] {
			fresh[s] = nil
		}
	}
	for name := range r.overBudget {
		if s := r.policies[name]; s != nil && s.flows > 0 && !overBudget[name] {
			fresh[s] = nil
		}
	}
	r.overBudget = overBudget
	for s, now := range fresh {
		switch {
		case !s.deleted && overBudget[s.policy.ID()]:
			now = r.resolveWithout(s, overBudgetError(s.flows, r.room))
			now.policy.OverBudget = true
			fresh[s] = now
		case now == nil:
			fresh[s] = r.resolveWithout(s, "")
		}
	}
}

// apply sets a policy's resolution. It calls moved for all rules, of this policy or others, whose id changes.
func (r *Resolver) apply(s *policyState, now *resolution, moved func(key string)) {
	s.active, s.resolved = now.active, now.policy
	s.resolved.Rank = s.rank
	var at place
	if s.active && s.policy.Tier.Ordered() {
		at = s.policy.place()
	}
	r.unranked = r.unranked || at != s.placed
	s.placed = at
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

// queries are all queries of the policy.
func (p *parsedPolicy) queries() []query {
	all := []query{p.subject}
	for _, side := range p.sides {
		for _, rule := range side.rules {
			all = append(append(all, rule.selected...), rule.byPortName...)
		}
	}
	return all
}

// setDependencies sets the queries that the policy depends on, and releases others.
func (r *Resolver) setDependencies(s *policyState, queries []query) {
	now := make(map[*selection]bool, len(queries))
	for _, q := range queries {
		now[r.acquire(q, s)] = true
	}
	for old := range s.dependencies {
		if !now[old] {
			r.release(old, s)
		}
	}
	s.dependencies = now
}

// prefixes and views implement source.
func (r *Resolver) prefixes(q query) []netip.Prefix { return r.selections[q.key].prefixes() }

func (r *Resolver) views(q query) iter.Seq[*podView] {
	return func(yield func(*podView) bool) {
		for p := range r.selections[q.key].members {
			if !yield(p.view) {
				return
			}
		}
	}
}

func (r *Resolver) nodes(s Selector) []netip.Prefix {
	return nodePrefixes(maps.Values(r.nodeObjects), s)
}

func (r *Resolver) learned(domains []Domain) (addrs, ended []netip.Prefix) {
	return learnedOf(r.names, domains)
}

// assignRanks assigns the ranks again if the places have changed. It calls note for policies before their rank changes.
func (r *Resolver) assignRanks(note func(*policyState)) {
	if !r.unranked {
		return
	}
	r.unranked = false
	var places []place
	for _, s := range r.policies {
		if s.placed != (place{}) {
			places = append(places, s.placed)
		}
	}
	for id, rank := range assignRanks(places) {
		if s := r.policies[id]; s.rank != rank {
			note(s)
			s.rank, s.resolved.Rank = rank, rank
		}
	}
}

func equalPolicies(a, b model.Policy) bool {
	return a.ID == b.ID && a.Tier == b.Tier && a.Rank == b.Rank && a.Log == b.Log && a.Err == b.Err &&
		a.Staged == b.Staged && a.Warning == b.Warning && slices.Equal(a.Domains, b.Domains) &&
		equalSides(a.Ingress, b.Ingress) && equalSides(a.Egress, b.Egress)
}

func equalSides(a, b *model.PolicySide) bool {
	if a == nil || b == nil {
		return a == b
	}
	return slices.Equal(a.Pods, b.Pods) && slices.EqualFunc(a.Rules, b.Rules, func(a, b model.PolicyRule) bool {
		return a.Verdict == b.Verdict && a.Index == b.Index && a.ID == b.ID && a.AnyPeer == b.AnyPeer &&
			a.AnyPort == b.AnyPort && slices.Equal(a.Pods, b.Pods) && samePrefixes(a.Peers, b.Peers) &&
			slices.Equal(a.Ended, b.Ended) && slices.Equal(a.Ports, b.Ports)
	})
}

// samePrefixes compares lists that usually share their memory.
func samePrefixes(a, b []netip.Prefix) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b))
}
