// Package dnslearn learns addresses of domain names from DNS packets between pods and trusted servers, for the peers
// domainNames of ClusterNetworkPolicies. It sends no query.
//
// An answer teaches when a query was seen before that asked for it: from the same address and port of the pod, with the
// same id and question. That it comes from a trusted server, and belongs to the pod's connection, is the caller's part.
// What is kept is bounded in every way, because pods decide which names they ask for.
//
// A Learner belongs to one goroutine. It reads no clock: callers say what time it is.
package dnslearn

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
)

// Bounds.
const (
	// MinTTL is the shortest time for which an address is learned: programs connect a moment after they have the answer,
	// and a TTL may be 0.
	MinTTL = 30 * time.Second
	// MaxTTL is the longest.
	MaxTTL = 24 * time.Hour
	// MaxNames is how many names a node learns at most, and MaxAddrs how many addresses of all names together: far below
	// what a policy's flows may be (flows.maxFlows).
	MaxNames = 10_000
	MaxAddrs = 20_000
	// askedFor is how long a query waits for its answer. maxAsked is how many of a pod do.
	askedFor   = 30 * time.Second
	maxAsked   = 256
	maxClients = 1024
	// maxChain is how many CNAMEs lead from a name to its addresses at most.
	maxChain = 16
)

// Learner has what was learned.
type Learner struct {
	domains []policy.Domain
	names   map[string]*entry
	addrs   int // of all names, with the ended ones
	asked   map[netip.Addr]*questions
	streams streams
	stats   Stats
}

// entry is what is known of a name: by address, until when.
type entry struct {
	addrs map[netip.Addr]time.Time
	ended map[netip.Addr]time.Time // when they have
}

// Stats count from the Learner's start.
type Stats struct {
	// Learned are answers with addresses of names that are wanted, Other those without.
	Learned, Other uint64
	// Unasked are answers that no query was seen for; Invalid are packets without a DNS message.
	Unasked, Invalid uint64
	// NoRoom are names and addresses that were not learned because there were MaxNames, or MaxAddrs.
	NoRoom uint64
}

// question is what an answer must repeat.
type question struct {
	port uint16
	tcp  bool
	id   uint16
	name string
	kind dnsmessage.Type
}

// questions are those of one client, the oldest first.
type questions struct {
	when  map[question]time.Time
	order []question
}

// New returns a Learner that knows nothing and wants nothing.
func New() *Learner {
	return &Learner{names: map[string]*entry{}, asked: map[netip.Addr]*questions{}, streams: streams{}}
}

// Stats returns the counters.
func (l *Learner) Stats() Stats { return l.stats }

// Want says which names are to be learned, and returns those that are forgotten.
func (l *Learner) Want(domains []policy.Domain) (changed []string) {
	l.domains = slices.Clone(domains)
	for _, name := range slices.Sorted(maps.Keys(l.names)) {
		if !l.wants(name) {
			l.addrs -= l.names[name].size()
			delete(l.names, name)
			changed = append(changed, name)
		}
	}
	return changed
}

func (l *Learner) wants(name string) bool {
	return slices.ContainsFunc(l.domains, func(d policy.Domain) bool { return d.Matches(name) })
}

// Query takes a frame that a pod sends to a server.
func (l *Learner) Query(frame []byte, now time.Time) {
	for p, message := range l.messages(frame, now) {
		var parser dnsmessage.Parser
		header, err := parser.Start(message)
		if err != nil || header.Response {
			continue
		}
		if q, err := parser.Question(); err == nil {
			l.ask(p.from.Addr(), question{p.from.Port(), p.tcp, header.ID, policy.CanonicalName(q.Name.String()), q.Type}, now)
		}
	}
}

// Answer takes a frame that a server sends to a pod, and returns the names of which something else is known now, and
// whether it has, or may have, addresses of names that are wanted: over TCP a segment may come again, or the next
// answer begin with it.
func (l *Learner) Answer(frame []byte, now time.Time) (changed []string, wanted bool) {
	for p, message := range l.messages(frame, now) {
		names, ok := l.answer(p, message, now)
		changed, wanted = append(changed, names...), wanted || ok
		if stream := l.streams[direction{p.from, p.to}]; ok && p.tcp && stream != nil {
			stream.wanted = true
		}
	}
	if p, err := parseFrame(frame); err == nil && p.tcp && len(p.payload) > 0 {
		stream := l.streams[direction{p.from, p.to}]
		wanted = wanted || stream != nil && stream.wanted
	}
	slices.Sort(changed)
	return slices.Compact(changed), wanted
}

// messages are the DNS messages that a frame has or completes.
func (l *Learner) messages(frame []byte, now time.Time) func(func(packet, []byte) bool) {
	return func(yield func(packet, []byte) bool) {
		p, err := parseFrame(frame)
		switch {
		case err != nil:
			l.stats.Invalid++
		case !p.tcp:
			yield(p, p.payload)
		default:
			for _, m := range l.streams.segment(p, now) {
				if !yield(p, m) {
					return
				}
			}
		}
	}
}

func (l *Learner) ask(client netip.Addr, q question, now time.Time) {
	of := l.asked[client]
	if of == nil {
		if len(l.asked) >= maxClients {
			clear(l.asked) // more pods than a node has
		}
		of = &questions{when: map[question]time.Time{}}
		l.asked[client] = of
	}
	if _, again := of.when[q]; !again {
		of.order = append(of.order, q)
	}
	of.when[q] = now
	for len(of.order) > maxAsked {
		delete(of.when, of.order[0])
		of.order = of.order[1:]
	}
}

// answer learns from one message.
func (l *Learner) answer(p packet, message []byte, now time.Time) (changed []string, wanted bool) {
	var parser dnsmessage.Parser
	header, err := parser.Start(message)
	if err != nil || !header.Response {
		l.stats.Invalid++
		return nil, false
	}
	q, err := parser.Question()
	if err != nil || parser.SkipAllQuestions() != nil {
		l.stats.Invalid++
		return nil, false
	}
	asked := question{p.to.Port(), p.tcp, header.ID, policy.CanonicalName(q.Name.String()), q.Type}
	// It stays: the same answer may come twice, and is then to be held twice.
	if of := l.asked[p.to.Addr()]; of == nil || !of.has(asked, now) {
		l.stats.Unasked++
		return nil, false
	}
	for name, found := range readAnswers(&parser).of(asked.name) {
		if len(found) == 0 || !l.wants(name) {
			continue
		}
		wanted = true
		if l.learn(name, found, now) {
			changed = append(changed, name)
		}
	}
	if wanted {
		l.stats.Learned++
	} else {
		l.stats.Other++
	}
	return changed, wanted
}

func (q *questions) has(one question, now time.Time) bool {
	when, ok := q.when[one]
	return ok && now.Sub(when) <= askedFor
}

// answers are the records of an answer: addresses and aliases by name, with the time that they hold.
type answers struct {
	addrs   map[string]map[netip.Addr]time.Duration
	aliases map[string]alias
}

type alias struct {
	name string
	ttl  time.Duration
}

// readAnswers reads records up to the end, or to the first that cannot be read: an answer may be cut short.
func readAnswers(parser *dnsmessage.Parser) answers {
	a := answers{map[string]map[netip.Addr]time.Duration{}, map[string]alias{}}
	for {
		h, err := parser.AnswerHeader()
		if err != nil {
			return a
		}
		name, ttl := policy.CanonicalName(h.Name.String()), time.Duration(h.TTL)*time.Second
		switch {
		case h.Class != dnsmessage.ClassINET:
			err = parser.SkipAnswer()
		case h.Type == dnsmessage.TypeA:
			var r dnsmessage.AResource
			if r, err = parser.AResource(); err == nil {
				a.add(name, netip.AddrFrom4(r.A), ttl)
			}
		case h.Type == dnsmessage.TypeAAAA:
			var r dnsmessage.AAAAResource
			if r, err = parser.AAAAResource(); err == nil {
				a.add(name, netip.AddrFrom16(r.AAAA), ttl)
			}
		case h.Type == dnsmessage.TypeCNAME:
			var r dnsmessage.CNAMEResource
			if r, err = parser.CNAMEResource(); err == nil {
				a.aliases[name] = alias{policy.CanonicalName(r.CNAME.String()), ttl}
			}
		default:
			err = parser.SkipAnswer()
		}
		if err != nil {
			return a
		}
	}
}

// add leaves out what no packet of a pod may be sent to by a name: an address of the sender's own host, or of no host.
func (a answers) add(name string, addr netip.Addr, ttl time.Duration) {
	if addr.Is4In6() || !addr.IsGlobalUnicast() {
		return
	}
	if a.addrs[name] == nil {
		a.addrs[name] = map[netip.Addr]time.Duration{}
	}
	a.addrs[name][addr] = ttl
}

// of follows the aliases from a name: the addresses at the end are those of all names on the way. What the answer says
// of other names does not count.
func (a answers) of(name string) map[string]map[netip.Addr]time.Duration {
	out := map[string]map[netip.Addr]time.Duration{}
	way, ttls := []string{name}, []time.Duration(nil)
	for len(way) <= maxChain {
		next, ok := a.aliases[way[len(way)-1]]
		if !ok || slices.Contains(way, next.name) {
			break
		}
		way, ttls = append(way, next.name), append(ttls, next.ttl)
	}
	last := a.addrs[way[len(way)-1]]
	for i, on := range way {
		out[on] = map[netip.Addr]time.Duration{}
		for addr, ttl := range last {
			for _, t := range ttls[i:] {
				ttl = min(ttl, t)
			}
			out[on][addr] = ttl
		}
	}
	return out
}

// learn notes addresses of a name and says whether that changes it.
func (l *Learner) learn(name string, found map[netip.Addr]time.Duration, now time.Time) bool {
	e := l.names[name]
	if e == nil {
		if len(l.names) >= MaxNames {
			l.stats.NoRoom++
			return false
		}
		e = &entry{map[netip.Addr]time.Time{}, map[netip.Addr]time.Time{}}
		l.names[name] = e
	}
	before, size := e.learned(), e.size()
	for addr, ttl := range found {
		if _, known := e.addrs[addr]; !known && l.addrs+e.size()-size >= MaxAddrs {
			l.stats.NoRoom++
			continue
		}
		until := now.Add(min(max(ttl, MinTTL), MaxTTL))
		if e.addrs[addr].Before(until) {
			e.addrs[addr] = until
		}
		delete(e.ended, addr)
	}
	for _, addr := range surplus(e.addrs) {
		e.end(addr, now)
	}
	for _, addr := range surplus(e.ended) {
		delete(e.ended, addr)
	}
	l.addrs += e.size() - size
	if e.size() == 0 {
		delete(l.names, name)
	}
	return !before.Equal(e.learned())
}

func (e *entry) size() int { return len(e.addrs) + len(e.ended) }

// surplus are the addresses above the limit, with the earliest times.
func surplus(of map[netip.Addr]time.Time) []netip.Addr {
	if len(of) <= model.MaxNameAddrs {
		return nil
	}
	list := slices.SortedFunc(maps.Keys(of), func(a, b netip.Addr) int {
		return cmp.Or(of[a].Compare(of[b]), a.Compare(b))
	})
	return list[:len(list)-model.MaxNameAddrs]
}

func (e *entry) end(addr netip.Addr, now time.Time) {
	delete(e.addrs, addr)
	e.ended[addr] = now
}

// Expire ends addresses whose time is over, and returns the names that it changes.
func (l *Learner) Expire(now time.Time) (changed []string) {
	for _, name := range slices.Sorted(maps.Keys(l.names)) {
		e, before, size := l.names[name], len(l.names[name].addrs), l.names[name].size()
		for addr, until := range e.addrs {
			if until.Before(now) {
				e.end(addr, now)
			}
		}
		for _, addr := range surplus(e.ended) {
			delete(e.ended, addr)
		}
		l.addrs += e.size() - size
		if len(e.addrs) != before {
			changed = append(changed, name)
		}
	}
	for client, of := range l.asked {
		for len(of.order) > 0 && now.Sub(of.when[of.order[0]]) > askedFor {
			delete(of.when, of.order[0])
			of.order = of.order[1:]
		}
		if len(of.order) == 0 {
			delete(l.asked, client)
		}
	}
	return changed
}

// Ended are the addresses whose time was over before a moment.
func (l *Learner) Ended(before time.Time) map[netip.Addr]bool {
	list := map[netip.Addr]bool{}
	for _, e := range l.names {
		for addr, when := range e.ended {
			if when.Before(before) {
				list[addr] = true
			}
		}
	}
	return list
}

// Forget drops ended addresses, and returns the names that it changes. A name without any address is forgotten.
func (l *Learner) Forget(addrs map[netip.Addr]bool) (changed []string) {
	for _, name := range slices.Sorted(maps.Keys(l.names)) {
		e, before := l.names[name], len(l.names[name].ended)
		maps.DeleteFunc(e.ended, func(addr netip.Addr, _ time.Time) bool { return addrs[addr] })
		if len(e.ended) != before {
			l.addrs += len(e.ended) - before
			changed = append(changed, name)
		}
		if e.size() == 0 {
			delete(l.names, name)
		}
	}
	return changed
}

// Name returns what is known of a name.
func (l *Learner) Name(name string) model.LearnedName {
	if e := l.names[name]; e != nil {
		return e.learned()
	}
	return model.LearnedName{}
}

func (e *entry) learned() model.LearnedName {
	return model.LearnedName{Addrs: sortedKeys(e.addrs), Ended: sortedKeys(e.ended)}
}

func sortedKeys(of map[netip.Addr]time.Time) []netip.Addr {
	return slices.SortedFunc(maps.Keys(of), netip.Addr.Compare)
}

// Record is one address of a name, as it is kept on disk.
type Record struct {
	Name  string     `json:"name"`
	Addr  netip.Addr `json:"addr"`
	Until time.Time  `json:"until"`
	Ended bool       `json:"ended,omitempty"`
}

// Records are all addresses of a name, in order.
func (l *Learner) Records(name string) []Record {
	e := l.names[name]
	if e == nil {
		return nil
	}
	var list []Record
	for _, addr := range sortedKeys(e.addrs) {
		list = append(list, Record{name, addr, e.addrs[addr], false})
	}
	for _, addr := range sortedKeys(e.ended) {
		list = append(list, Record{name, addr, e.ended[addr], true})
	}
	return list
}

// Names are the names of which something is known, sorted.
func (l *Learner) Names() []string { return slices.Sorted(maps.Keys(l.names)) }

// Recall takes over records, and returns the names that this changes. Of an address that is in several, the last one
// counts. The next Want forgets names that are not wanted.
func (l *Learner) Recall(list []Record, now time.Time) (changed []string) {
	for _, r := range list {
		name := policy.CanonicalName(r.Name)
		if !r.Addr.IsGlobalUnicast() {
			continue
		}
		left := max(r.Until.Sub(now), 0)
		l.learn(name, map[netip.Addr]time.Duration{r.Addr: left}, now)
		e := l.names[name]
		if e == nil { // there was no room
			continue
		}
		if r.Ended {
			e.end(r.Addr, now)
		}
		changed = append(changed, name)
	}
	slices.Sort(changed)
	return slices.Compact(changed)
}
