package flows

import (
	"cmp"
	"maps"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// verdicts say what the policies' flows do with the first packet of a connection, without the flows. The rules of a
// stage have numbers in the order of their places; what has a pod, a peer or a port in common is a set of numbers, and
// a rule matches when it is in all three, as in a conjunction. So a connection costs the intersection of three sets,
// however many policies there are.
type verdicts struct {
	attached map[netip.Addr]bool
	node     map[netip.Addr]bool
	stages   []*ruleIndex
}

// ruleIndex are the rules of one stage.
type ruleIndex struct {
	stage
	rules   []model.PolicyRule
	pods    map[netip.Addr][]int // of selected pods: the rules about each
	peers   map[netip.Prefix][]int
	anyPeer []int
	lengths map[int]bool // that peers have
	// Memos, emptied when they are full.
	ofPod  map[netip.Addr]ruleSet
	ofPeer map[netip.Addr]ruleSet
	ofPort map[portKey]ruleSet
}

type portKey struct {
	protocol uint8
	port     uint16
}

// maxMemo bounds the sets that are kept for connections to come.
const maxMemo = 4096

func newVerdicts(s *model.Snapshot, quarantined map[model.Owner]error) *verdicts {
	v := &verdicts{attached: map[netip.Addr]bool{}, node: map[netip.Addr]bool{}}
	for key, a := range s.Attachments {
		for _, ip := range a.IPs {
			v.attached[ip] = !s.Unknown[key]
		}
	}
	for _, addr := range selfInputsOf(s).nodeAddrs() {
		v.node[addr] = true
	}
	policies := slices.SortedFunc(maps.Values(s.Policies),
		func(a, b model.Policy) int { return cmp.Compare(a.Rank, b.Rank) })
	for _, st := range stages {
		x := &ruleIndex{stage: st, pods: map[netip.Addr][]int{}, peers: map[netip.Prefix][]int{},
			lengths: map[int]bool{},
			ofPod:   map[netip.Addr]ruleSet{}, ofPeer: map[netip.Addr]ruleSet{}, ofPort: map[portKey]ruleSet{}}
		for _, p := range policies {
			if quarantined[p.ID.Owner()] != nil {
				p = p.FailClosed()
			}
			if side := p.Side(st.direction); side != nil && p.Tier == st.tier && !p.Staged {
				x.add(side)
			}
		}
		v.stages = append(v.stages, x)
	}
	return v
}

func (x *ruleIndex) add(side *model.PolicySide) {
	for _, pod := range side.Pods {
		x.pods[pod] = slices.Clip(x.pods[pod]) // selected, be it by no rule
	}
	for _, r := range side.Rules {
		n := len(x.rules)
		x.rules = append(x.rules, r)
		for _, pod := range r.Pods {
			x.pods[pod] = append(x.pods[pod], n)
		}
		if r.AnyPeer {
			x.anyPeer = append(x.anyPeer, n)
			continue
		}
		for _, peer := range slices.Concat(r.Peers, r.Ended) { // what is audited has begun
			x.peers[peer] = append(x.peers[peer], n)
			x.lengths[peer.Bits()] = true
		}
	}
}

// allow is the policy stages of the pipeline.
func (v *verdicts) allow(c openflow.Connection) bool {
	from, to := c.Source.Addr(), c.Endpoint.Addr()
	ended := model.Direction("") // the direction that a rule has accepted
	for _, x := range v.stages {
		subject, peer := to, from
		if x.direction == model.Egress {
			subject, peer = from, to
		}
		switch {
		case x.direction == ended:
			continue
		case x.direction == model.Egress && peer == model.RejectAddr(peer.Is4()): // see allowRejection
			continue
		case x.isolation != 0 && (v.node[peer] || from == to && v.attached[from]): // see allowNode and allowSelf
			continue
		}
		switch x.decide(subject, peer, portKey{c.Protocol, c.Endpoint.Port()}) {
		case model.Deny:
			return false
		case model.Accept:
			ended = x.direction
		}
	}
	return true
}

func (x *ruleIndex) decide(subject, peer netip.Addr, port portKey) model.Verdict {
	about, selected := x.pods[subject]
	if !selected {
		return model.Pass
	}
	if len(about) > 0 {
		pods := memo(x.ofPod, subject, func() ruleSet { return x.set(about) })
		first, ok := pods.first(memo(x.ofPeer, peer, func() ruleSet {
			return x.withPeer(peer)
		}), memo(x.ofPort, port, func() ruleSet { return x.withPort(port) }))
		if ok {
			return x.rules[first].Verdict
		}
	}
	if x.isolation != 0 {
		return model.Deny
	}
	return model.Pass
}

func (x *ruleIndex) withPeer(peer netip.Addr) ruleSet {
	set := x.set(x.anyPeer)
	for length := range x.lengths {
		if p, err := peer.Prefix(length); err == nil { // else a length of the other family
			set.add(x.peers[p])
		}
	}
	return set
}

func (x *ruleIndex) withPort(k portKey) ruleSet {
	set := x.set(nil)
	for n, r := range x.rules {
		if r.AnyPort || slices.ContainsFunc(r.Ports, func(m model.PortMatch) bool {
			return m.Protocol.Number() == k.protocol && k.port&m.Mask == m.Port
		}) {
			set.add([]int{n})
		}
	}
	return set
}

func (x *ruleIndex) set(numbers []int) ruleSet {
	set := make(ruleSet, (len(x.rules)+63)/64)
	set.add(numbers)
	return set
}

// ruleSet is a set of rules' numbers, a bit for each.
type ruleSet []uint64

func (s ruleSet) add(numbers []int) {
	for _, n := range numbers {
		s[n/64] |= 1 << (n % 64)
	}
}

// first gives the first rule that is in all three sets.
func (s ruleSet) first(a, b ruleSet) (number int, ok bool) {
	for i := range s {
		if all := s[i] & a[i] & b[i]; all != 0 {
			return 64*i + bits.TrailingZeros64(all), true
		}
	}
	return 0, false
}

// memo gives what was made for a key before, or makes it.
func memo[K comparable](sets map[K]ruleSet, key K, build func() ruleSet) ruleSet {
	set, ok := sets[key]
	if !ok {
		if len(sets) >= maxMemo {
			clear(sets)
		}
		set = build()
		sets[key] = set
	}
	return set
}
