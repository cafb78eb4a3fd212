package policy

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
)

// scopeKind is the set of pods that a query searches.
type scopeKind uint8

const (
	// localScope is the pods of one namespace that are attached to this node: the candidates for a policy's
	// podSelector.
	localScope scopeKind = iota + 1
	// namespaceScope is the pods of one namespace.
	namespaceScope
	// matchingScope is the pods of the namespaces that a selector selects.
	matchingScope
	// clusterScope is all pods.
	clusterScope
	// localMatchingScope is the pods of matchingScope that are attached to this node: the candidates for the subject of a
	// ClusterNetworkPolicy.
	localMatchingScope
)

// scopeKey identifies a scope. Equivalent selectors have the same key.
type scopeKey struct {
	kind scopeKind
	// name is the namespace of the first two kinds, and the canonical selector of the matching ones.
	name string
}

// queryKey identifies a query.
type queryKey struct {
	scope scopeKey
	pods  string
	port  portName
}

// query selects pods: those in a scope that match a selector and, if a port name is given, have a port of that name.
type query struct {
	key        queryKey
	namespaces Selector // of the matching scopes
	pods       Selector
}

func selectLocal(namespace string, pods Selector) query {
	return query{key: queryKey{scope: scopeKey{localScope, namespace}, pods: pods.canonical()}, pods: pods}
}

func selectLocalMatching(namespaces, pods Selector) query {
	q := selectMatching(namespaces, pods)
	q.key.scope.kind = localMatchingScope
	return q
}

func selectIn(namespace string, pods Selector) query {
	return query{key: queryKey{scope: scopeKey{namespaceScope, namespace}, pods: pods.canonical()}, pods: pods}
}

func selectMatching(namespaces, pods Selector) query {
	return query{
		key:        queryKey{scope: scopeKey{matchingScope, namespaces.canonical()}, pods: pods.canonical()},
		namespaces: namespaces, pods: pods,
	}
}

func selectPort(name portName) query {
	return query{key: queryKey{scope: scopeKey{kind: clusterScope}, port: name}}
}

// hasNamespace reports whether the scope includes a namespace. Selectors do not select an unknown namespace.
func (q query) hasNamespace(name string, labels map[string]string, known bool) bool {
	switch q.key.scope.kind {
	case localScope, namespaceScope:
		return q.key.scope.name == name
	case matchingScope, localMatchingScope:
		return known && q.namespaces.Matches(labels)
	}
	return true
}

// has reports whether the query selects a pod of one of the scope's namespaces.
func (q query) has(v *podView) bool {
	eligible := v.peer
	if k := q.key.scope.kind; k == localScope || k == localMatchingScope {
		eligible = v.local
	}
	return eligible && q.pods.Matches(v.labels) && (q.key.port == portName{} || v.has(q.key.port))
}

// requirements are the selector's requirements as expressions, sorted, each once.
func (s Selector) requirements() []Requirement {
	out := make([]Requirement, 0, len(s.MatchLabels)+len(s.MatchExpressions))
	for _, key := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		out = append(out, Requirement{Key: key, Operator: In, Values: []string{s.MatchLabels[key]}})
	}
	for _, r := range s.MatchExpressions {
		r.Values = slices.Compact(slices.Sorted(slices.Values(r.Values)))
		out = append(out, r)
	}
	compare := func(a, b Requirement) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Operator, b.Operator), slices.Compare(a.Values, b.Values))
	}
	slices.SortFunc(out, compare)
	return slices.CompactFunc(out, func(a, b Requirement) bool { return compare(a, b) == 0 })
}

// canonical is a text that is equal exactly for selectors with the same requirements.
func (s Selector) canonical() string {
	var b []byte
	for _, r := range s.requirements() {
		b = append(append(strconv.AppendQuote(b, r.Key), ' '), r.Operator...)
		for _, value := range r.Values {
			b = strconv.AppendQuote(append(b, ' '), value)
		}
		b = append(b, ';')
	}
	return string(b)
}
