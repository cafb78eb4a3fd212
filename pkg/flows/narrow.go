package flows

import (
	"net/netip"
	"slices"
	"sort"

	"github.com/weft-cni/weft/pkg/model"
)

// Narrows says whether a change of a policy may deny what was allowed. It errs on the safe side only: what it says no
// to denies nothing new. A zero Policy is none. Fresh tells addresses that have no connections yet, those of pods
// that have just been attached.
func Narrows(before, after model.Policy, fresh func(netip.Addr) bool) bool {
	if (before.Tier.Ordered() || after.Tier.Ordered()) && before.ID != (model.PolicyID{}) &&
		after.ID != (model.PolicyID{}) && (before.Tier != after.Tier || before.Rank != after.Rank) {
		return true
	}
	for _, d := range []model.Direction{model.Egress, model.Ingress} {
		was, is := before.Side(d), after.Side(d)
		if was == nil {
			was = &model.PolicySide{}
		}
		if is == nil {
			is = &model.PolicySide{}
		}
		switch {
		case after.Tier.Ordered():
			// A rule that denies, or passes to one that does, may apply to more.
			if restrictsMore(was.Rules, is.Rules, fresh) {
				return true
			}
		case slices.ContainsFunc(is.Pods, func(pod netip.Addr) bool {
			return !slices.Contains(was.Pods, pod) && !fresh(pod)
		}):
			return true // isolated by this policy from now on
		}
		for _, r := range was.Rules {
			if r.Verdict != model.Deny && // without one that passes, a later one of the tier may deny
				!slices.ContainsFunc(is.Rules, func(x model.PolicyRule) bool { return covers(x, r) }) {
				return true
			}
		}
	}
	return false
}

// restrictsMore says whether rules that do not accept match what they did not match before, but of fresh pods.
func restrictsMore(was, is []model.PolicyRule, fresh func(netip.Addr) bool) bool {
	for _, r := range is {
		if r.Verdict == model.Accept {
			continue
		}
		r.Pods = slices.DeleteFunc(slices.Clone(r.Pods), fresh)
		if len(r.Pods) > 0 && !slices.ContainsFunc(was, func(x model.PolicyRule) bool { return covers(x, r) }) {
			return true
		}
	}
	return false
}

// covers says whether a rule of the same place in the list and with the same verdict matches at least what another one
// matches.
func covers(wide, narrow model.PolicyRule) bool {
	return wide.Index == narrow.Index && wide.Verdict == narrow.Verdict && includes(wide.Pods, narrow.Pods) &&
		coversPeers(wide, narrow) && coversPorts(wide, narrow)
}

// includes says whether a sorted list has all that another sorted list has.
func includes(wide, narrow []netip.Addr) bool {
	i := 0
	for _, addr := range narrow {
		for i < len(wide) && wide[i].Less(addr) {
			i++
		}
		if i == len(wide) || wide[i] != addr {
			return false
		}
	}
	return true
}

func coversPeers(wide, narrow model.PolicyRule) bool {
	if wide.AnyPeer || narrow.AnyPeer {
		return wide.AnyPeer
	}
	for _, peer := range narrow.Peers {
		// The last range that begins no later: they are disjoint.
		i := sort.Search(len(wide.Peers), func(i int) bool { return peer.Addr().Less(wide.Peers[i].Addr()) }) - 1
		if i < 0 || wide.Peers[i].Bits() > peer.Bits() || !wide.Peers[i].Contains(peer.Addr()) {
			if !slices.Contains(wide.Ended, peer) { // its connections go on
				return false
			}
		}
	}
	return true
}

func coversPorts(wide, narrow model.PolicyRule) bool {
	if wide.AnyPort || narrow.AnyPort {
		return wide.AnyPort
	}
	for _, p := range narrow.Ports {
		if !slices.ContainsFunc(wide.Ports, func(w model.PortMatch) bool {
			return w.Protocol == p.Protocol && w.Mask&p.Mask == w.Mask && p.Port&w.Mask == w.Port
		}) {
			return false
		}
	}
	return true
}
