package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Check returns an error for everything that the API server should have rejected. The API server's validation is not
// relied on: an invalid policy isolates its pods in its directions and allows nothing, because a partial rule may allow
// more than the whole.
func (policy Policy) Check() error {
	var errs []error
	if policy.Err != "" {
		errs = append(errs, errors.New(policy.Err))
	}
	bad := func(where string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", where, err))
		}
	}
	bad("podSelector", policy.PodSelector.check())
	for _, t := range policy.Types {
		if t != Ingress && t != Egress {
			bad("policyTypes", fmt.Errorf("invalid direction %q; allowed: Ingress, Egress", t))
		}
	}
	for i, rule := range policy.Ingress {
		bad(fmt.Sprintf("ingress[%d]", i), rule.check())
	}
	for i, rule := range policy.Egress {
		bad(fmt.Sprintf("egress[%d]", i), rule.check())
	}
	if most := policy.mostRanges(); most > maxRanges {
		errs = append(errs, fmt.Errorf("the exceptions of its ipBlocks may expand to %d ranges, more than %d; "+
			"use fewer or wider exceptions", most, maxRanges))
	}
	return errors.Join(errs...)
}

// mostRanges is an upper bound of the ranges that the policy's ipBlocks with exceptions expand to.
func (policy Policy) mostRanges() int {
	most := 0
	for _, rule := range slices.Concat(policy.Ingress, policy.Egress) {
		for _, peer := range rule.Peers {
			if peer.IPBlock != nil && peer.IPBlock.CIDR.IsValid() {
				most += peer.IPBlock.mostRanges()
			}
		}
	}
	return most
}

func (rule Rule) check() error {
	for i, peer := range rule.Peers {
		if err := peer.check(); err != nil {
			return fmt.Errorf("peer %d: %w", i, err)
		}
	}
	for i, port := range rule.Ports {
		if err := port.check(); err != nil {
			return fmt.Errorf("ports[%d]: %w", i, err)
		}
	}
	return nil
}

func (peer Peer) check() error {
	selectors := peer.PodSelector != nil || peer.NamespaceSelector != nil
	switch {
	case peer.IPBlock == nil && !selectors:
		return errors.New("neither a selector nor an ipBlock")
	case peer.IPBlock != nil && selectors:
		return errors.New("an ipBlock cannot be combined with selectors")
	case peer.IPBlock != nil:
		for _, cidr := range append([]netip.Prefix{peer.IPBlock.CIDR}, peer.IPBlock.Except...) {
			if !cidr.IsValid() {
				return errors.New("ipBlock: missing or invalid CIDR")
			}
		}
	}
	for _, s := range []*Selector{peer.PodSelector, peer.NamespaceSelector} {
		if s != nil {
			if err := s.check(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (port Port) check() error {
	switch {
	case !slices.Contains([]Protocol{"", TCP, UDP, SCTP}, port.Protocol):
		return fmt.Errorf("invalid protocol %q; allowed: TCP, UDP, SCTP", port.Protocol)
	case port.Name != "" && (port.Number != 0 || port.EndPort != 0):
		return fmt.Errorf("port %q has both a name and a number", port.Name)
	case port.EndPort != 0 && port.EndPort < port.Number:
		return fmt.Errorf("endPort %d is below port %d", port.EndPort, port.Number)
	case port.EndPort != 0 && port.Number == 0:
		return fmt.Errorf("endPort %d without a port", port.EndPort)
	}
	return nil
}

func (s Selector) check() error {
	for _, r := range s.MatchExpressions {
		if err := r.check(); err != nil {
			return err
		}
	}
	return nil
}

func (r Requirement) check() error {
	switch r.Operator {
	case In, NotIn:
		if len(r.Values) == 0 {
			return fmt.Errorf("label %q: operator %s needs values", r.Key, r.Operator)
		}
	case Exists, DoesNotExist:
		if len(r.Values) > 0 {
			return fmt.Errorf("label %q: operator %s takes no values", r.Key, r.Operator)
		}
	default:
		return fmt.Errorf("label %q: unknown operator %q", r.Key, r.Operator)
	}
	return nil
}

// validPart is the selector without its invalid requirements. It selects every pod that the selector may mean, so that
// a mistake in a policy's podSelector isolates too many pods rather than too few.
func (s Selector) validPart() Selector {
	if s.check() == nil {
		return s
	}
	out := Selector{MatchLabels: s.MatchLabels}
	for _, r := range s.MatchExpressions {
		if r.check() == nil {
			out.MatchExpressions = append(out.MatchExpressions, r)
		}
	}
	return out
}
