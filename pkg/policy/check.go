package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
)

// Check returns an error for everything that the API server should have rejected, and for what is not supported. The
// API server's validation is not relied on: what is invalid fails closed (see effective).
func (policy Policy) Check() error {
	errs := []error{policy.checkWhole()}
	for _, d := range []Direction{Ingress, Egress} {
		for i, rule := range policy.rules(d) {
			if err := policy.checkRule(d, rule); err != nil {
				errs = append(errs, fmt.Errorf("%s[%d]: %w", strings.ToLower(string(d)), i, err))
			}
		}
	}
	return errors.Join(errs...)
}

// checkWhole returns an error for what is wrong with the policy apart from its rules.
func (policy Policy) checkWhole() error {
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
	bad("namespaceSelector", policy.NamespaceSelector.check())
	if policy.Priority < 0 || policy.Priority > maxPriority {
		bad("priority", fmt.Errorf("%d is not from 0 to %d", policy.Priority, maxPriority))
	}
	for _, t := range policy.Types {
		if t != Ingress && t != Egress {
			bad("policyTypes", fmt.Errorf("invalid direction %q; allowed: Ingress, Egress", t))
		}
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

// maxPriority is the highest priority, which comes last.
const maxPriority = 1000

// effective are the rules of a direction that count, by their index: of a policy or rule that is invalid or not
// supported those that fail closed. That is nothing for a NetworkPolicy, because a part of a policy may allow more than
// the whole. A rule of a ClusterNetworkPolicy matches nothing if it is to accept, and denies everything otherwise.
func (policy Policy) effective(d Direction) map[int]Rule {
	rules := map[int]Rule{}
	if !policy.Tier.Ordered() {
		if policy.Check() == nil {
			for i, rule := range policy.rules(d) {
				rules[i] = rule
			}
		}
		return rules
	}
	whole := policy.checkWhole()
	for i, rule := range policy.rules(d) {
		switch {
		case whole == nil && policy.checkRule(d, rule) == nil:
			rules[i] = rule
		case rule.Verdict != model.Accept:
			rules[i] = Rule{Verdict: model.Deny}
		}
	}
	return rules
}

func (policy Policy) checkRule(d Direction, rule Rule) error {
	if !policy.Tier.Ordered() {
		return rule.check()
	}
	if rule.Err != "" {
		return errors.New(rule.Err)
	}
	if len(rule.Peers) == 0 {
		return errors.New("no peers")
	}
	nodes := func(p Peer) bool { return p.NodeSelector != nil }
	if d == Ingress && slices.ContainsFunc(rule.Peers, nodes) {
		return errors.New("nodes can only be peers of egress rules")
	}
	domains := func(p Peer) bool { return p.Domain != "" }
	if slices.ContainsFunc(rule.Peers, domains) {
		switch {
		case d == Ingress:
			return errors.New("domainNames can only be peers of egress rules")
		case rule.Verdict != model.Accept:
			return errors.New("domainNames are for rules that accept")
		case policy.Tier != model.AdminTier:
			return errors.New("domainNames are for the tier Admin")
		}
	}
	return rule.check()
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
	case peer.Domain != "":
		if selectors || peer.IPBlock != nil || peer.NodeSelector != nil {
			return errors.New("a domain name cannot be combined with others")
		}
		_, err := ParseDomain(string(peer.Domain))
		return err
	case peer.NodeSelector != nil:
		if selectors || peer.IPBlock != nil {
			return errors.New("a selector of nodes cannot be combined with others")
		}
		return peer.NodeSelector.check()
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
