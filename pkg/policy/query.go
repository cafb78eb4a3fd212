package policy

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
)

// scopeKind says where a query looks for pods.
type scopeKind uint8

const (
	// localScope is the pods of one namespace that are attached to this node: those that a policy can be about.
	localScope scopeKind = iota + 1
	// namespaceScope is the pods of one namespace.
	namespaceScope
	// matchingScope is the pods of the namespaces that a selector selects.
	matchingScope
	// everywhere is all pods.
	everywhere
)

// scopeKey names a scope; the same one has the same name, however its selector was spelled.
type scopeKey struct {
	kind scopeKind
	// name is the namespace of the first two kinds, and the third's selector.
	name string
}

// queryKey names a query.
type queryKey struct {
	scope scopeKey
	pods  string
	port  portName
}

// query asks for pods: those in a scope that a selector selects and that, if a name is given, have a port of that name.
type query struct {
	key        queryKey
	namespaces Selector // of matchingScope
	pods       Selector
}

func selectLocal(namespace string, pods Selector) query {
	return query{key: queryKey{scope: scopeKey{localScope, namespace}, pods: pods.spell()}, pods: pods}
}

func selectIn(namespace string, pods Selector) query {
	return query{key: queryKey{scope: scopeKey{namespaceScope, namespace}, pods: pods.spell()}, pods: pods}
}

func selectMatching(namespaces, pods Selector) query {
	return query{key: queryKey{scope: scopeKey{matchingScope, namespaces.spell()}, pods: pods.spell()}, namespaces: namespaces, pods: pods}
}

func selectPort(name portName) query {
	return query{key: queryKey{scope: scopeKey{kind: everywhere}, port: name}}
}

// hasNamespace says whether the scope extends to a namespace. As long as a namespace is not known, no selector selects it.
func (q query) hasNamespace(name string, labels map[string]string, known bool) bool {
	switch q.key.scope.kind {
	case localScope, namespaceScope:
		return q.key.scope.name == name
	case matchingScope:
		return known && q.namespaces.Matches(labels)
	}
	return true
}

// has says whether a pod of one of the scope's namespaces is an answer.
func (q query) has(v *view) bool {
	eligible := v.peer
	if q.key.scope.kind == localScope {
		eligible = v.local
	}
	return eligible && q.pods.Matches(v.labels) && (q.key.port == portName{} || v.has(q.key.port))
}

// requirements are all that a selector asks for, as expressions: sorted, each once.
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

// spell gives selectors that ask for the same requirements the same text, and others another.
func (s Selector) spell() string {
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
