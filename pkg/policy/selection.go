package policy

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
)

// selection is a query of one or more policies with its current result. Equal queries share one selection.
type selection struct {
	query
	users   map[*policyState]bool
	members map[*podState]bool
	// list are the members' addresses at the last call of prefixes; shared and immutable. changed are the pods that
	// differ since, with the addresses that list has of them.
	list    []netip.Prefix
	changed map[*podState][]netip.Addr
}

// change adds or removes a member, and marks the selection's policies dirty. listed are the pod's addresses in list.
func (r *Resolver) change(s *selection, p *podState, member bool, listed []netip.Addr) {
	if _, known := s.changed[p]; !known {
		s.changed[p] = listed
	}
	if member {
		s.members[p] = true
	} else {
		delete(s.members, p)
	}
	for user := range s.users {
		r.dirty[user] = true
	}
}

// prefixes are the members' addresses, sorted. An address belongs to one pod at a time, but may have moved from one
// member to another, so removed addresses are deleted before new ones are inserted.
func (s *selection) prefixes() []netip.Prefix {
	if len(s.changed) == 0 {
		return s.list
	}
	deleted := map[netip.Addr]bool{}
	var come []netip.Prefix
	for p, listed := range s.changed {
		for _, a := range listed {
			deleted[a] = true
		}
		if s.members[p] {
			for _, a := range p.view.addrs {
				come = append(come, hostPrefix(a))
			}
		}
	}
	slices.SortFunc(come, comparePrefixes)
	list := make([]netip.Prefix, 0, max(0, len(s.list)-len(deleted))+len(come))
	for _, p := range s.list {
		if deleted[p.Addr()] {
			continue
		}
		for len(come) > 0 && come[0].Addr().Less(p.Addr()) {
			list, come = append(list, come[0]), come[1:]
		}
		list = append(list, p)
	}
	list = append(list, come...)
	s.list = list
	clear(s.changed)
	return s.list
}

// indexKey is a property that all pods selected by a query have, so that an index finds queries by pods.
type indexKey struct {
	port  portName
	label label
	any   bool // the label with any value
}

// label is one label of a pod.
type label struct{ key, value string }

// indexKeys are the keys of a query in the index; a selected pod has at least one of them. All pods have the zero key.
func (q query) indexKeys() []indexKey {
	if q.key.port != (portName{}) {
		return []indexKey{{port: q.key.port}}
	}
	var best []indexKey
	for _, r := range q.pods.requirements() {
		var found []indexKey
		switch r.Operator {
		case In:
			for _, value := range r.Values {
				found = append(found, indexKey{label: label{r.Key, value}})
			}
		case Exists:
			found = []indexKey{{label: label{key: r.Key}, any: true}}
		}
		switch {
		case len(found) == 0:
		case len(best) == 0, best[0].any && !found[0].any, best[0].any == found[0].any && len(found) < len(best):
			best = found
		}
	}
	if len(best) == 0 {
		return []indexKey{{}}
	}
	return best
}

// indexKeys are all keys of a pod.
func (v *podView) indexKeys() []indexKey {
	out := make([]indexKey, 1, 1+2*len(v.labels)+len(v.ports))
	for key, value := range v.labels {
		out = append(out, indexKey{label: label{key, value}}, indexKey{label: label{key: key}, any: true})
	}
	for i, p := range v.ports {
		if !slices.ContainsFunc(v.ports[:i],
			func(q ContainerPort) bool { return q.Name == p.Name && q.Protocol == p.Protocol }) {
			out = append(out, indexKey{port: portName{p.Protocol, p.Name}})
		}
	}
	return out
}

// scope has the selections that search the same pods, by index key. Only the matching scopes keep their namespaces.
type scope struct {
	query      query
	count      int
	index      map[indexKey][]*selection
	namespaces map[*namespaceState]bool
}

// selections are the selections in the scopes that select a pod.
func selections(scopes []*scope, v *podView) map[*selection]bool {
	found := map[*selection]bool{}
	if v == nil {
		return found
	}
	indexKeys := v.indexKeys()
	for _, sc := range scopes {
		for _, a := range indexKeys {
			for _, s := range sc.index[a] {
				if s.has(v) {
					found[s] = true
				}
			}
		}
	}
	return found
}

// namespaceState is a namespace that exists, has pods with addresses or has policies.
type namespaceState struct {
	Namespace
	known       bool
	pods, local map[*podState]bool // local are attached to this node
	matching    map[*scope]bool
	policies    map[*policyState]bool
}

func (r *Resolver) namespace(name string) *namespaceState {
	n := r.namespaces[name]
	if n == nil {
		n = &namespaceState{
			Namespace: Namespace{Name: name}, pods: map[*podState]bool{}, local: map[*podState]bool{},
			matching: map[*scope]bool{}, policies: map[*policyState]bool{},
		}
		r.namespaces[name] = n
	}
	return n
}

// dropUnused deletes the state of a namespace that is unknown and has no pods and policies.
func (r *Resolver) dropUnused(n *namespaceState) {
	if !n.known && len(n.pods) == 0 && len(n.policies) == 0 {
		delete(r.namespaces, n.Name)
	}
}

// scopesOf are the scopes that include a namespace.
func (r *Resolver) scopesOf(n *namespaceState) []*scope {
	out := make([]*scope, 0, 3+len(n.matching))
	for _, key := range []scopeKey{{localScope, n.Name}, {namespaceScope, n.Name}, {kind: clusterScope}} {
		if sc := r.scopes[key]; sc != nil {
			out = append(out, sc)
		}
	}
	return slices.AppendSeq(out, maps.Keys(n.matching))
}

// updateScopes updates which selectors select a namespace, after its labels changed.
func (r *Resolver) updateScopes(n *namespaceState) {
	for sc := range r.matching {
		was, is := n.matching[sc], sc.query.hasNamespace(n.Name, n.Labels, n.known)
		if was == is {
			continue
		}
		if is {
			n.matching[sc], sc.namespaces[n] = true, true
		} else {
			delete(n.matching, sc)
			delete(sc.namespaces, n)
		}
		for p := range n.pods {
			for s := range selections([]*scope{sc}, p.view) {
				var listed []netip.Addr
				if was {
					listed = p.view.addrs
				}
				r.change(s, p, is, listed)
			}
		}
	}
}

// updateMemberships sets a pod's view, nil for none, and updates all selections.
func (r *Resolver) updateMemberships(p *podState, now *podView) {
	old := p.view
	p.view = now
	if old == nil && now == nil {
		return
	}
	n := r.namespace(p.Namespace)
	scopes := r.scopesOf(n)
	before, after := selections(scopes, old), selections(scopes, now)
	for s := range before {
		switch {
		case !after[s]:
			r.change(s, p, false, old.addrs)
		case !slices.Equal(old.addrs, now.addrs) || !slices.Equal(old.ports, now.ports):
			r.change(s, p, true, old.addrs)
		}
	}
	for s := range after {
		if !before[s] {
			r.change(s, p, true, nil)
		}
	}
	r.indexPod(n, p, old)
}

// indexPod updates the lists of pods that new selections are built from.
func (r *Resolver) indexPod(n *namespaceState, p *podState, old *podView) {
	if old == nil || p.view == nil || !maps.Equal(old.labels, p.view.labels) {
		if old != nil {
			for key, value := range old.labels {
				l := label{key, value}
				list := r.byLabel[l]
				if at := slices.Index(list, p); len(list) == 1 {
					delete(r.byLabel, l)
				} else {
					list[at] = list[len(list)-1]
					r.byLabel[l] = list[:len(list)-1]
				}
			}
		}
		if p.view != nil {
			for key, value := range p.view.labels {
				r.byLabel[label{key, value}] = append(r.byLabel[label{key, value}], p)
			}
		}
	}
	if p.view == nil {
		delete(n.pods, p)
		delete(n.local, p)
		r.dropUnused(n)
		return
	}
	n.pods[p] = true
	if p.view.local {
		n.local[p] = true
	} else {
		delete(n.local, p)
	}
}

// acquire returns the selection for a query, creating it if necessary, and registers the policy as its user.
func (r *Resolver) acquire(q query, user *policyState) *selection {
	if s := r.selections[q.key]; s != nil {
		s.users[user] = true
		return s
	}
	s := &selection{
		query: q, users: map[*policyState]bool{user: true}, members: map[*podState]bool{},
		changed: map[*podState][]netip.Addr{},
	}
	sc := r.scopes[q.key.scope]
	if sc == nil {
		sc = &scope{query: q, index: map[indexKey][]*selection{}, namespaces: map[*namespaceState]bool{}}
		r.scopes[q.key.scope] = sc
		if k := q.key.scope.kind; k == matchingScope || k == localMatchingScope {
			r.matching[sc] = true
			for _, n := range r.namespaces {
				if q.hasNamespace(n.Name, n.Labels, n.known) {
					n.matching[sc], sc.namespaces[n] = true, true
				}
			}
		}
	}
	sc.count++
	for _, a := range q.indexKeys() {
		sc.index[a] = append(sc.index[a], s)
	}
	for p := range r.candidates(q, sc) {
		if s.has(p.view) {
			s.members[p], s.changed[p] = true, nil
		}
	}
	r.selections[q.key] = s
	return s
}

// candidates are pods with a view that include all pods that a query selects: those in its scope, or those in its scope
// with a required label, the smaller set of the two.
func (r *Resolver) candidates(q query, sc *scope) iter.Seq[*podState] {
	var within []map[*podState]bool
	switch name := q.key.scope.name; q.key.scope.kind {
	case localScope:
		if n := r.namespaces[name]; n != nil {
			within = append(within, n.local)
		}
	case namespaceScope:
		if n := r.namespaces[name]; n != nil {
			within = append(within, n.pods)
		}
	case matchingScope:
		for n := range sc.namespaces {
			within = append(within, n.pods)
		}
	case localMatchingScope:
		for n := range sc.namespaces {
			within = append(within, n.local)
		}
	case clusterScope:
		for _, n := range r.namespaces {
			within = append(within, n.pods)
		}
	}
	count := 0
	for _, pods := range within {
		count += len(pods)
	}
	indexKeys := q.indexKeys()
	labelled := 0
	for _, a := range indexKeys {
		if a.any || a.label == (label{}) {
			labelled = count
		}
		labelled += len(r.byLabel[a.label])
	}
	return func(yield func(*podState) bool) {
		if labelled < count {
			for _, a := range indexKeys {
				for _, p := range r.byLabel[a.label] {
					if n := r.namespaces[p.Namespace]; q.hasNamespace(n.Name, n.Labels, n.known) && !yield(p) {
						return
					}
				}
			}
			return
		}
		for _, pods := range within {
			for p := range pods {
				if !yield(p) {
					return
				}
			}
		}
	}
}

// release unregisters a policy from a selection, and deletes a selection without users.
func (r *Resolver) release(s *selection, user *policyState) {
	delete(s.users, user)
	if len(s.users) > 0 {
		return
	}
	delete(r.selections, s.key)
	sc := r.scopes[s.key.scope]
	for _, a := range s.indexKeys() {
		sc.index[a] = slices.DeleteFunc(sc.index[a], func(other *selection) bool { return other == s })
		if len(sc.index[a]) == 0 {
			delete(sc.index, a)
		}
	}
	sc.count--
	if sc.count > 0 {
		return
	}
	delete(r.scopes, s.key.scope)
	delete(r.matching, sc)
	for n := range sc.namespaces {
		delete(n.matching, sc)
	}
}
