package state

import (
	"maps"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
)

// SetPod says what a pod of the cluster is now.
type SetPod struct{ Pod policy.Pod }

// DeletePod says that a pod is gone from the API.
type DeletePod struct{ Namespace, Name string }

// SetNamespace says what a namespace is now.
type SetNamespace struct{ Namespace policy.Namespace }

// DeleteNamespace says that a namespace is gone.
type DeleteNamespace struct{ Name string }

// SetPolicy says what a policy is now.
type SetPolicy struct{ Policy policy.Policy }

// DeletePolicy says that a policy is gone.
type DeletePolicy struct{ ID model.PolicyID }

// SetPeerNode says what policies see of a node. DeleteNode says that it is gone.
type SetPeerNode struct{ Node policy.Node }

// SetName says what was learned of a domain name; nothing learned deletes it.
type SetName struct {
	Name    string
	Learned model.LearnedName
}

// SetDNSServers says which DNS servers answers are learned from.
type SetDNSServers struct{ Servers model.DNSServers }

func (c SetDNSServers) apply(s *Store) bool {
	if s.next.DNSServers.Equal(c.Servers) {
		return false
	}
	s.next.DNSServers = c.Servers
	return true
}

// What these changes come to for the node is found out by Take, for all of them at once; until then nothing is
// different.

func (c SetPod) apply(s *Store) bool {
	s.resolver.SetPod(c.Pod)
	return false
}

func (c DeletePod) apply(s *Store) bool {
	s.resolver.DeletePod(c.Namespace, c.Name)
	return false
}

func (c SetNamespace) apply(s *Store) bool {
	s.resolver.SetNamespace(c.Namespace)
	return false
}

func (c DeleteNamespace) apply(s *Store) bool {
	s.resolver.DeleteNamespace(c.Name)
	return false
}

func (c SetPolicy) apply(s *Store) bool {
	s.resolver.SetPolicy(c.Policy)
	return false
}

func (c DeletePolicy) apply(s *Store) bool {
	s.resolver.DeletePolicy(c.ID)
	return false
}

func (c SetPeerNode) apply(s *Store) bool {
	s.resolver.SetNode(c.Node)
	return false
}

func (c SetName) apply(s *Store) bool {
	if s.next.Names[c.Name].Equal(c.Learned) {
		return false
	}
	s.resolver.SetName(c.Name, c.Learned)
	if !s.ownNames {
		s.next.Names, s.ownNames = maps.Clone(s.next.Names), true
	}
	if c.Learned.Empty() {
		delete(s.next.Names, c.Name)
	} else {
		s.next.Names[c.Name] = c.Learned
	}
	return true
}

// resolvePolicies takes over what the resolver says is different.
func (s *Store) resolvePolicies() {
	if s.copied != nil {
		s.resolveCopied()
		return
	}
	changes := s.resolver.Flush()
	if outside := s.resolver.OutsideClaims(); outside != s.next.OutsideClaims {
		s.next.OutsideClaims = outside
		s.next.Revision++
	}
	if len(changes.Policies) == 0 && len(changes.Unknown) == 0 {
		return
	}
	s.next.Revision++
	if len(changes.Policies) > 0 && !s.ownPolicies {
		s.next.Policies, s.ownPolicies = maps.Clone(s.next.Policies), true
	}
	for id, p := range changes.Policies {
		if was, had := s.next.Policies[id]; had { // it may have become staged, or enforced
			s.changed[was.Owner()] = true
		}
		if p == nil {
			delete(s.next.Policies, id)
			continue
		}
		s.next.Policies[id] = *p
		s.changed[p.Owner()] = true
	}
	s.next.Staging = model.AnyStaged(s.next.Policies)
	if len(changes.Unknown) == 0 {
		return
	}
	s.next.Unknown = maps.Clone(s.next.Unknown) // few, if any
	for key, unknown := range changes.Unknown {
		if unknown {
			s.next.Unknown[key] = true
		} else {
			delete(s.next.Unknown, key)
		}
		if a, ok := s.next.Attachments[key]; ok {
			s.changed[model.PodOwner(a)] = true
		}
	}
}
