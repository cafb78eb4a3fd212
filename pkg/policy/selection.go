package policy

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
)

// selection is a query that policies ask, with its answer kept up to date. Equal queries of many policies are one selection.
type selection struct {
	query
	users   map[*policyState]bool
	members map[*podState]bool
	// list are the members' addresses when somebody last asked; it is shared and never written again. changed are the pods
	// that are different since, with the addresses that list has of them.
	list    []netip.Prefix
	changed map[*podState][]netip.Addr
}

// change says that a pod is a member now, or is not, and that list has these addresses of it.
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

// prefixes are the members' addresses, sorted. An address belongs to one pod at a time, but may have gone from one member to
// another: what is gone is taken out before what has come is put in.
func (s *selection) prefixes() []netip.Prefix {
	if len(s.changed) == 0 {
		return s.list
	}
	gone := map[netip.Addr]bool{}
	var come []netip.Prefix
	for p, listed := range s.changed {
		for _, a := range listed {
			gone[a] = true
		}
		if s.members[p] {
			for _, a := range p.view.addrs {
				come = append(come, host(a))
			}
		}
	}
	slices.SortFunc(come, comparePrefixes)
	list := make([]netip.Prefix, 0, max(0, len(s.list)-len(gone))+len(come))
	for _, p := range s.list {
		if gone[p.Addr()] {
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

// anchor is something that every pod has which a query selects, so that an index finds one by the other.
type anchor struct {
	port  portName
	label label
	any   bool // the label with whatever value
}

// label is one label of a pod.
type label struct{ key, value string }

// anchors gives what to look a query up by. A pod has one of them at most; all pods have the zero anchor.
func (q query) anchors() []anchor {
	if q.key.port != (portName{}) {
		return []anchor{{port: q.key.port}}
	}
	var best []anchor
	for _, r := range q.pods.requirements() {
		var found []anchor
		switch r.Operator {
		case In:
			for _, value := range r.Values {
				found = append(found, anchor{label: label{r.Key, value}})
			}
		case Exists:
			found = []anchor{{label: label{key: r.Key}, any: true}}
		}
		switch {
		case len(found) == 0:
		case len(best) == 0, best[0].any && !found[0].any, best[0].any == found[0].any && len(found) < len(best):
			best = found
		}
	}
	if len(best) == 0 {
		return []anchor{{}}
	}
	return best
}

// anchors are all that a pod has.
func (v *view) anchors() []anchor {
	out := make([]anchor, 1, 1+2*len(v.labels)+len(v.ports))
	for key, value := range v.labels {
		out = append(out, anchor{label: label{key, value}}, anchor{label: label{key: key}, any: true})
	}
	for i, p := range v.ports {
		if !slices.ContainsFunc(v.ports[:i], func(q ContainerPort) bool { return q.Name == p.Name && q.Protocol == p.Protocol }) {
			out = append(out, anchor{port: portName{p.Protocol, p.Name}})
		}
	}
	return out
}

// scope is the selections that look in the same place, by their anchors. Only matchingScope keeps its namespaces.
type scope struct {
	query      query
	count      int
	index      map[anchor][]*selection
	namespaces map[*namespaceState]bool
}

// selections are those of some scopes that select a pod.
func selections(scopes []*scope, v *view) map[*selection]bool {
	found := map[*selection]bool{}
	if v == nil {
		return found
	}
	anchors := v.anchors()
	for _, sc := range scopes {
		for _, a := range anchors {
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
	pods, local map[*podState]bool // local are the pods that are attached here
	matching    map[*scope]bool
	policies    map[*policyState]bool
}

func (r *Resolver) namespace(name string) *namespaceState {
	n := r.namespaces[name]
	if n == nil {
		n = &namespaceState{Namespace: Namespace{Name: name}, pods: map[*podState]bool{}, local: map[*podState]bool{}, matching: map[*scope]bool{}, policies: map[*policyState]bool{}}
		r.namespaces[name] = n
	}
	return n
}

// forget drops a namespace that nothing is left of.
func (r *Resolver) forget(n *namespaceState) {
	if !n.known && len(n.pods) == 0 && len(n.policies) == 0 {
		delete(r.namespaces, n.Name)
	}
}

// scopesOf are the scopes that extend to a namespace.
func (r *Resolver) scopesOf(n *namespaceState) []*scope {
	out := make([]*scope, 0, 3+len(n.matching))
	for _, key := range []scopeKey{{localScope, n.Name}, {namespaceScope, n.Name}, {kind: everywhere}} {
		if sc := r.scopes[key]; sc != nil {
			out = append(out, sc)
		}
	}
	return slices.AppendSeq(out, maps.Keys(n.matching))
}

// rescope finds out which selectors select a namespace whose labels are new.
func (r *Resolver) rescope(n *namespaceState) {
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

// show brings a pod's new view, or that it has none any more, to all selections.
func (r *Resolver) show(p *podState, now *view) {
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
	r.file(n, p, old)
}

// file keeps the lists of pods that new selections begin with.
func (r *Resolver) file(n *namespaceState, p *podState, old *view) {
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
		r.forget(n)
		return
	}
	n.pods[p] = true
	if p.view.local {
		n.local[p] = true
	} else {
		delete(n.local, p)
	}
}

// acquire gives the selection that answers a query.
func (r *Resolver) acquire(q query, user *policyState) *selection {
	if s := r.selections[q.key]; s != nil {
		s.users[user] = true
		return s
	}
	s := &selection{query: q, users: map[*policyState]bool{user: true}, members: map[*podState]bool{}, changed: map[*podState][]netip.Addr{}}
	sc := r.scopes[q.key.scope]
	if sc == nil {
		sc = &scope{query: q, index: map[anchor][]*selection{}, namespaces: map[*namespaceState]bool{}}
		r.scopes[q.key.scope] = sc
		if q.key.scope.kind == matchingScope {
			r.matching[sc] = true
			for _, n := range r.namespaces {
				if q.hasNamespace(n.Name, n.Labels, n.known) {
					n.matching[sc], sc.namespaces[n] = true, true
				}
			}
		}
	}
	sc.count++
	for _, a := range q.anchors() {
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

// candidates are pods with a view, among them all that a query selects: those in its scope, or those in its scope that have a
// label that it asks for, whichever are fewer.
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
	case everywhere:
		for _, n := range r.namespaces {
			within = append(within, n.pods)
		}
	}
	count := 0
	for _, pods := range within {
		count += len(pods)
	}
	anchors := q.anchors()
	labelled := 0
	for _, a := range anchors {
		if a.any || a.label == (label{}) {
			labelled = count
		}
		labelled += len(r.byLabel[a.label])
	}
	return func(yield func(*podState) bool) {
		if labelled < count {
			for _, a := range anchors {
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

// release says that a policy does not ask a query any more; the last one to say so ends the selection.
func (r *Resolver) release(s *selection, user *policyState) {
	delete(s.users, user)
	if len(s.users) > 0 {
		return
	}
	delete(r.selections, s.key)
	sc := r.scopes[s.key.scope]
	for _, a := range s.anchors() {
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
