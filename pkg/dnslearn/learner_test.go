package dnslearn_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/weft-cni/weft/pkg/dnslearn"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
)

var (
	client = netip.MustParseAddrPort("10.244.1.2:40000")
	server = netip.MustParseAddrPort("10.96.0.10:53")
	begin  = time.Unix(1_800_000_000, 0)
)

// frame is an Ethernet frame with a payload; TCP begins at seq.
func frame(from, to netip.AddrPort, tcp bool, flags byte, seq uint32, payload []byte) []byte {
	var l4 []byte
	l4 = binary.BigEndian.AppendUint16(l4, from.Port())
	l4 = binary.BigEndian.AppendUint16(l4, to.Port())
	protocol := byte(17)
	if tcp {
		protocol = 6
		l4 = binary.BigEndian.AppendUint32(l4, seq)
		l4 = append(l4, 0, 0, 0, 0, 5<<4, flags, 255, 255, 0, 0, 0, 0)
	} else {
		l4 = binary.BigEndian.AppendUint16(l4, uint16(8+len(payload)))
		l4 = append(l4, 0, 0)
	}
	l4 = append(l4, payload...)
	out := make([]byte, 12, 64+len(l4))
	if from.Addr().Is4() {
		out = append(out, 8, 0, 0x45, 0)
		out = binary.BigEndian.AppendUint16(out, uint16(20+len(l4)))
		out = append(out, 0, 0, 0, 0, 64, protocol, 0, 0)
	} else {
		out = append(out, 0x86, 0xdd, 0x60, 0, 0, 0)
		out = binary.BigEndian.AppendUint16(out, uint16(len(l4)))
		out = append(out, protocol, 64)
	}
	out = append(append(out, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	out = append(out, l4...)
	for len(out) < 60 {
		out = append(out, 0) // Ethernet's padding
	}
	return out
}

func query(id uint16, name string, kind dnsmessage.Type) []byte {
	return message(id, false, name, kind)
}

// message is a query, or a response with records: "NAME TTL ADDRESS" or "NAME TTL ALIAS".
func message(id uint16, response bool, name string, kind dnsmessage.Type, records ...string) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, Response: response})
	b.EnableCompression()
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	must(b.StartQuestions())
	must(b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}))
	must(b.StartAnswers())
	for _, r := range records {
		f := strings.Fields(r)
		var ttl uint32
		_, err := fmt.Sscan(f[1], &ttl)
		must(err)
		h := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(f[0]), TTL: ttl, Class: dnsmessage.ClassINET}
		switch addr, err := netip.ParseAddr(f[2]); {
		case err != nil:
			must(b.CNAMEResource(h, dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(f[2])}))
		case addr.Is4():
			must(b.AResource(h, dnsmessage.AResource{A: addr.As4()}))
		default:
			must(b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: addr.As16()}))
		}
	}
	out, err := b.Finish()
	must(err)
	return out
}

func learner(domains ...policy.Domain) *dnslearn.Learner {
	l := dnslearn.New()
	l.Want(domains)
	return l
}

// exchange asks and is answered.
func exchange(l *dnslearn.Learner, now time.Time, name string, records ...string) []string {
	l.Query(frame(client, server, false, 0, 0, query(7, name, dnsmessage.TypeA)), now)
	changed, _ := l.Answer(frame(server, client, false, 0, 0, message(7, true, name, dnsmessage.TypeA, records...)), now)
	return changed
}

// records are all that a Learner has.
func records(l *dnslearn.Learner) (list []dnslearn.Record) {
	for _, name := range l.Names() {
		list = append(list, l.Records(name)...)
	}
	return list
}

// known is what a Learner knows: "NAME ADDRESS …", ended ones in parentheses.
func known(l *dnslearn.Learner) string {
	var words []string
	last := ""
	for _, r := range records(l) {
		if r.Name != last {
			words, last = append(words, r.Name), r.Name
		}
		if r.Ended {
			words = append(words, "("+r.Addr.String()+")")
		} else {
			words = append(words, r.Addr.String())
		}
	}
	return strings.Join(words, " ")
}

func TestLearn(t *testing.T) {
	for _, tc := range []struct {
		what, asked string
		answer      []string
		want        string
	}{
		{"an address", "www.a.example.", []string{"www.a.example. 60 192.0.2.1"}, "www.a.example 192.0.2.1"},
		{"a wildcard", "X.B.example.", []string{"x.b.EXAMPLE. 60 192.0.2.1", "x.b.example. 60 2001:db8::1"},
			"x.b.example 192.0.2.1 2001:db8::1"},
		{"the name of a wildcard", "b.example.", []string{"b.example. 60 192.0.2.1"}, ""},
		{"another name", "c.example.", []string{"c.example. 60 192.0.2.1"}, ""},
		{"an alias", "www.a.example.", []string{"www.a.example. 60 cdn.example.", "cdn.example. 60 x.b.example.",
			"x.b.example. 60 192.0.2.1"}, "www.a.example 192.0.2.1 x.b.example 192.0.2.1"},
		{"in any order", "www.a.example.", []string{"cdn.example. 60 192.0.2.1", "www.a.example. 60 cdn.example."},
			"www.a.example 192.0.2.1"},
		{"of an alias alone", "c.example.", []string{"c.example. 60 x.b.example.", "x.b.example. 60 192.0.2.1"},
			"x.b.example 192.0.2.1"},
		{"not what was not asked", "c.example.", []string{"c.example. 60 192.0.2.2", "www.a.example. 60 192.0.2.1"}, ""},
		{"a loop", "www.a.example.", []string{"www.a.example. 60 c.example.", "c.example. 60 www.a.example.",
			"www.a.example. 60 192.0.2.1"}, ""},
		{"of no host", "www.a.example.", []string{"www.a.example. 60 127.0.0.1", "www.a.example. 60 0.0.0.0",
			"www.a.example. 60 224.0.0.1", "www.a.example. 60 fe80::1", "www.a.example. 60 ::ffff:192.0.2.9"}, ""},
		{"nothing", "www.a.example.", nil, ""},
	} {
		l := learner("www.a.example", "*.b.example")
		changed := exchange(l, begin, tc.asked, tc.answer...)
		if got := known(l); got != tc.want || (len(changed) > 0) != (tc.want != "") {
			t.Errorf("%s: changed %v, knows %q, want %q", tc.what, changed, got, tc.want)
		}
		if again := exchange(l, begin, tc.asked, tc.answer...); len(again) > 0 {
			t.Errorf("%s: the same answer again changed %v", tc.what, again)
		}
	}
}

// TestForged: what was not asked for in this way teaches nothing.
func TestForged(t *testing.T) {
	const name = "www.a.example."
	other := netip.MustParseAddrPort("10.244.1.9:40000")
	const record = name + " 60 192.0.2.1"
	good := message(7, true, name, dnsmessage.TypeA, record)
	for what, answer := range map[string][]byte{
		"another id": frame(server, client, false, 0, 0, message(8, true, name, dnsmessage.TypeA, record)),
		"another question": frame(server, client, false, 0, 0,
			message(7, true, name, dnsmessage.TypeAAAA, record)),
		"another name": frame(server, client, false, 0, 0, message(7, true, "b.a.example.", dnsmessage.TypeA,
			"b.a.example. 60 192.0.2.1")),
		"another port": frame(server, netip.AddrPortFrom(client.Addr(), 40001), false, 0, 0, good),
		"another pod":  frame(server, other, false, 0, 0, good),
		"over TCP":     frame(server, client, true, 0, 1, append([]byte{0, byte(len(good))}, good...)),
		"a query":      frame(server, client, false, 0, 0, query(7, name, dnsmessage.TypeA)),
		"no DNS":       frame(server, client, false, 0, 0, []byte("hello")),
		"cut":          frame(server, client, false, 0, 0, good)[:50],
	} {
		l := learner("*.example")
		l.Query(frame(client, server, false, 0, 0, query(7, name, dnsmessage.TypeA)), begin)
		if changed, _ := l.Answer(answer, begin); len(changed) > 0 || known(l) != "" {
			t.Errorf("%s has taught %v: %s", what, changed, known(l))
		}
		l.Answer(frame(server, client, false, 0, 0, good), begin)
		if known(l) != "www.a.example 192.0.2.1" {
			t.Errorf("after %s the right answer has taught %q", what, known(l))
		}
	}
	l := learner("*.example")
	l.Query(frame(client, server, false, 0, 0, query(7, name, dnsmessage.TypeA)), begin)
	if changed, _ := l.Answer(frame(server, client, false, 0, 0, good), begin.Add(time.Minute)); len(changed) > 0 {
		t.Error("an answer after a minute has taught")
	}
	if s := l.Stats(); s.Unasked != 1 {
		t.Errorf("counted %+v, want one answer that was not asked for", s)
	}
}

// TestTime: an address is known for its TTL within limits, with aliases for the shortest one, then ended until it is
// forgotten, or learned again.
func TestTime(t *testing.T) {
	l := learner("*.example")
	exchange(l, begin, "a.example.", "a.example. 300 b.example.", "b.example. 100 192.0.2.1")
	exchange(l, begin, "c.example.", "c.example. 0 192.0.2.2")
	exchange(l, begin, "d.example.", "d.example. 50 e.example.", "e.example. 4000000000 192.0.2.3")
	for _, at := range []struct {
		after time.Duration
		want  string
	}{
		{29 * time.Second, "a.example 192.0.2.1 b.example 192.0.2.1 c.example 192.0.2.2 d.example 192.0.2.3 " +
			"e.example 192.0.2.3"},
		{31 * time.Second, "a.example 192.0.2.1 b.example 192.0.2.1 c.example (192.0.2.2) d.example 192.0.2.3 " +
			"e.example 192.0.2.3"},
		{51 * time.Second, "a.example 192.0.2.1 b.example 192.0.2.1 c.example (192.0.2.2) d.example (192.0.2.3) " +
			"e.example 192.0.2.3"},
		{101 * time.Second, "a.example (192.0.2.1) b.example (192.0.2.1) c.example (192.0.2.2) " +
			"d.example (192.0.2.3) e.example 192.0.2.3"},
		{25 * time.Hour, "a.example (192.0.2.1) b.example (192.0.2.1) c.example (192.0.2.2) " +
			"d.example (192.0.2.3) e.example (192.0.2.3)"},
	} {
		l.Expire(begin.Add(at.after))
		if got := known(l); got != at.want {
			t.Errorf("after %s it knows %s\nwant %s", at.after, got, at.want)
		}
	}
	later := begin.Add(25 * time.Hour)
	changed := exchange(l, later, "c.example.", "c.example. 60 192.0.2.2")
	if !slices.Equal(changed, []string{"c.example"}) {
		t.Errorf("learned again, it changes %v", changed)
	}
	if ended := l.Ended(begin.Add(50 * time.Second)); len(ended) != 0 {
		t.Errorf("%v ended before it was learned again", ended)
	}
	if ended := l.Ended(begin.Add(time.Hour)); len(ended) != 2 {
		t.Errorf("after an hour %v had ended, want 192.0.2.1 and 192.0.2.3", ended)
	}
	all := l.Ended(later.Add(time.Second))
	if changed := l.Forget(all); !slices.Equal(changed, []string{"a.example", "b.example", "d.example", "e.example"}) ||
		known(l) != "c.example 192.0.2.2" {
		t.Errorf("forgotten: %v; it knows %s", changed, known(l))
	}
}

// TestLimits: a name has 100 addresses, those that hold longest; a node has 1000 names; a pod has 256 queries.
func TestLimits(t *testing.T) {
	l := learner("*.example")
	for i := range 250 {
		exchange(l, begin, "a.example.", fmt.Sprintf("a.example. %d 192.0.2.%d", 1000+i, i+1))
	}
	got := l.Name("a.example")
	if len(got.Addrs) != model.MaxNameAddrs || len(got.Ended) != model.MaxNameAddrs {
		t.Errorf("it knows %d addresses and %d ended ones of a name", len(got.Addrs), len(got.Ended))
	}
	if got.Addrs[0] != netip.MustParseAddr("192.0.2.151") {
		t.Errorf("the first address is %s, want the 150 that end first left out", got.Addrs[0])
	}
	for i := range dnslearn.MaxNames + 10 {
		name := fmt.Sprintf("n%d.example.", i)
		exchange(l, begin, name, name+" 60 192.0.2.1")
	}
	if n, s := len(records(l))-200, l.Stats(); n != dnslearn.MaxNames-1 || s.NoRoom != 11 {
		t.Errorf("it knows %d names more and had no room %d times", n, s.NoRoom)
	}
	for i := range 110 {
		for j := range 100 {
			name := fmt.Sprintf("n%d.example.", i)
			exchange(l, begin, name, fmt.Sprintf("%s 60 198.51.%d.%d", name, i, j+1))
		}
	}
	if n := len(records(l)); n != dnslearn.MaxAddrs {
		t.Errorf("it knows %d addresses", n)
	}
	if changed := l.Want([]policy.Domain{"a.example"}); len(changed) != dnslearn.MaxNames-1 || len(records(l)) != 200 {
		t.Errorf("no longer wanted, %d names are forgotten", len(changed))
	}
	for i := range 1000 {
		l.Query(frame(client, server, false, 0, 0, query(uint16(i), "a.example.", dnsmessage.TypeA)), begin)
	}
	for _, id := range []uint16{743, 744} {
		l.Answer(frame(server, client, false, 0, 0, message(id, true, "a.example.", dnsmessage.TypeA)), begin)
	}
	if s := l.Stats(); s.Unasked != 1 {
		t.Errorf("of the 257th and the 256th query %d are forgotten", s.Unasked)
	}
}

// TestTCP: messages over TCP teach in whatever segments they come, with IPv6, too, once the last segment is there.
func TestTCP(t *testing.T) {
	from, to := netip.MustParseAddrPort("[fd00::2]:40000"), netip.MustParseAddrPort("[fd00::10]:53")
	const name = "a.example."
	ask, reply := query(7, name, dnsmessage.TypeA), message(7, true, name, dnsmessage.TypeA, name+" 60 192.0.2.1")
	length := func(m []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...) }
	ask = length(ask)
	two := append(length(message(9, true, "b.example.", dnsmessage.TypeA)), length(reply)...)
	const syn = 2
	start := uint32(0xffffff00) // wraps
	for _, order := range [][]int{{0, 1, 2, 3}, {3, 2, 1, 0}, {1, 0, 0, 3, 2, 2}} {
		l := learner("*.example")
		l.Query(frame(from, to, true, syn, start, nil), begin)
		l.Query(frame(from, to, true, 0, start+1, ask[:5]), begin)
		l.Query(frame(from, to, true, 0, start+6, ask[5:]), begin)
		l.Answer(frame(to, from, true, syn, start, nil), begin)
		part := len(two) / 4
		for i, k := range order {
			end := (k + 1) * part
			if k == 3 {
				end = len(two)
			}
			changed, _ := l.Answer(frame(to, from, true, 0, start+1+uint32(k*part), two[k*part:end]), begin)
			seen := map[int]bool{}
			for _, x := range order[:i+1] {
				seen[x] = true
			}
			first := !slices.Contains(order[:i], k)
			if (len(changed) > 0) != (len(seen) == 4 && first) {
				t.Errorf("order %v: segment %d changed %v", order, k, changed)
			}
		}
		if known(l) != "a.example 192.0.2.1" {
			t.Errorf("order %v has taught %q", order, known(l))
		}
	}
}

// TestRepeatedSegment: a segment that comes again, because the first one is held, is to be held, too, and so is what
// follows it; a segment without data is not.
func TestRepeatedSegment(t *testing.T) {
	const syn, fin, name = 2, 1, "a.example."
	length := func(m []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...) }
	reply := length(message(7, true, name, dnsmessage.TypeA, name+" 60 192.0.2.1"))
	other := length(message(7, true, name, dnsmessage.TypeA))
	for _, c := range []struct {
		what  string
		reply []byte
		want  bool
	}{{"addresses", reply, true}, {"no addresses", other, false}} {
		l := learner("*.example")
		l.Query(frame(client, server, true, syn, 0, nil), begin)
		l.Query(frame(client, server, true, 0, 1, length(query(7, name, dnsmessage.TypeA))), begin)
		for i, segment := range [][]byte{
			frame(server, client, true, syn, 0, nil), frame(server, client, true, 0, 1, c.reply),
			frame(server, client, true, fin, 1+uint32(len(c.reply)), nil), frame(server, client, true, fin, 1, c.reply),
			frame(server, client, true, 0, 1+uint32(len(c.reply)), []byte{0}),
		} {
			want := c.want && i != 0 && i != 2
			if _, wanted := l.Answer(segment, begin); wanted != want {
				t.Errorf("%s: segment %d is wanted: %v", c.what, i, wanted)
			}
		}
	}
}

// TestManyStreams: when too many connections are open, the one that was silent for the longest time teaches nothing.
func TestManyStreams(t *testing.T) {
	const syn, name = 2, "a.example."
	to := netip.MustParseAddrPort("[fd00::10]:53")
	client := func(i int) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("fd00::2"), uint16(10000+i)) }
	length := func(m []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...) }
	l := learner("*.example")
	for i := range dnslearn.MaxStreams + 1 {
		l.Query(frame(client(i), to, true, syn, 0, nil), begin.Add(time.Duration(i)*time.Millisecond))
	}
	now := begin.Add(time.Second)
	both := []int{0, dnslearn.MaxStreams}
	for _, i := range both {
		l.Query(frame(client(i), to, true, 0, 1, length(query(7, name, dnsmessage.TypeA))), now)
	}
	reply := length(message(7, true, name, dnsmessage.TypeA, name+" 60 192.0.2.1"))
	for _, i := range both {
		l.Answer(frame(to, client(i), true, syn, 0, nil), now)
		if changed, _ := l.Answer(frame(to, client(i), true, 0, 1, reply), now); (len(changed) > 0) != (i > 0) {
			t.Errorf("connection %d taught %v", i, changed)
		}
	}
}

// TestRecall: what was learned survives in records, and only what is wanted.
func TestRecall(t *testing.T) {
	l := learner("*.example")
	exchange(l, begin, "a.example.", "a.example. 60 192.0.2.1", "a.example. 600 192.0.2.2")
	exchange(l, begin, "b.example.", "b.example. 60 192.0.2.3")
	l.Expire(begin.Add(2 * time.Minute))
	want := known(l)
	again := learner("a.example")
	changed := again.Recall(records(l), begin.Add(2*time.Minute))
	if forgotten := again.Want([]policy.Domain{"a.example"}); !slices.Equal(changed, []string{"a.example", "b.example"}) ||
		!slices.Equal(forgotten, []string{"b.example"}) {
		t.Errorf("recalled %v, of which it wants all but %v", changed, forgotten)
	}
	if got := known(again); got != "a.example 192.0.2.2 (192.0.2.1)" && got != "a.example (192.0.2.1) 192.0.2.2" {
		t.Errorf("it recalls %s of %s", got, want)
	}
	again.Expire(begin.Add(11 * time.Minute))
	if got := again.Name("a.example"); len(got.Addrs) != 0 {
		t.Errorf("a recalled address outlives its time: %v", got)
	}
}

// FuzzFrames: no frame makes a Learner panic, or know more than its bounds.
func FuzzFrames(f *testing.F) {
	const name = "a.example."
	f.Add(frame(client, server, false, 0, 0, query(7, name, dnsmessage.TypeA)),
		frame(server, client, false, 0, 0, message(7, true, name, dnsmessage.TypeA, name+" 60 192.0.2.1")))
	f.Add(frame(client, server, true, 2, 5, nil), frame(client, server, true, 0, 6, []byte{0, 3, 1, 2, 3}))
	f.Add(frame(server, client, true, 2, 0xffffffff, nil), frame(server, client, true, 1, 0, []byte{0, 0, 0}))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		l := learner("*.example")
		for _, one := range [][]byte{a, b, a} {
			l.Query(one, begin)
			names, _ := l.Answer(one, begin)
			for _, changed := range names {
				if n := l.Name(changed); len(n.Addrs) == 0 || len(n.Addrs) > model.MaxNameAddrs {
					t.Errorf("%s has %d addresses", changed, len(n.Addrs))
				}
			}
		}
		l.Expire(begin.Add(time.Hour))
	})
}
