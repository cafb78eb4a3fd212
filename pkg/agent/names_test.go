package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/weft-cni/weft/pkg/dnslearn"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofconn"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
)

// dnsSwitch is a switch and a loop that program when they are told to.
type dnsSwitch struct {
	packets chan ofconn.PacketIn
	closed  chan struct{}

	mu         sync.Mutex
	view       *model.Snapshot
	sent       []string // the payloads of the frames that were output
	gate       time.Time
	submitted  programmer.Revision
	names      map[string]model.LearnedName
	programmed chan struct{} // closed when everything is programmed
}

func newDNSSwitch() *dnsSwitch {
	return &dnsSwitch{packets: make(chan ofconn.PacketIn), closed: make(chan struct{}), programmed: make(chan struct{}),
		view:  &model.Snapshot{Policies: map[model.PolicyID]model.Policy{{}: {Domains: []string{"*.example"}}}},
		names: map[string]model.LearnedName{}}
}

func (s *dnsSwitch) Next() (ofconn.PacketIn, error) {
	select {
	case p := <-s.packets:
		return p, nil
	case <-s.closed:
		return ofconn.PacketIn{}, errors.New("closed")
	}
}

func (s *dnsSwitch) Output(port uint32, frame []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, string(frame[42:44])) // the id of the message
	return nil
}

func (s *dnsSwitch) Lead(_, _ openflow.TableID, _ uint64, _, seconds uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gate = time.Now().Add(time.Duration(seconds) * time.Second)
	return nil
}

func (s *dnsSwitch) Close() error { close(s.closed); return nil }

func (s *dnsSwitch) Submit(c state.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name, ok := c.(state.SetName); ok {
		s.names[name.Name] = name.Learned
	}
	s.submitted++
}

func (s *dnsSwitch) Submitted() programmer.Revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.submitted
}

func (s *dnsSwitch) Programmed(ctx context.Context, _ programmer.Revision, _ ...model.Owner) error {
	select {
	case <-s.programmed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *dnsSwitch) View() *model.Snapshot { return s.view }

func (s *dnsSwitch) output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.sent, " ")
}

func (s *dnsSwitch) learned(name string) model.LearnedName {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names[name]
}

// frames are a query and its answer.
func dnsFrames(t *testing.T, id uint16, name string, addr netip.Addr) (query, answer []byte) {
	n := dnsmessage.MustNewName(name)
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: id},
		Questions: []dnsmessage.Question{{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	asked, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	m.Response = true
	m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: n, Type: dnsmessage.TypeA,
		Class: dnsmessage.ClassINET, TTL: 60}, Body: &dnsmessage.AResource{A: addr.As4()}}}
	said, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	packet := func(from, to byte, fromPort, toPort uint16, payload []byte) []byte {
		f := make([]byte, 42, 42+len(payload))
		f[12], f[14], f[23] = 8, 0x45, 17
		f[16], f[17] = byte((28+len(payload))>>8), byte(28+len(payload))
		copy(f[26:], []byte{10, 244, 1, from, 10, 244, 1, to})
		f[34], f[35], f[36], f[37] = byte(fromPort>>8), byte(fromPort), byte(toPort>>8), byte(toPort)
		return append(f, payload...)
	}
	return packet(2, 3, 40000, 53, asked), packet(3, 2, 53, 40000, said)
}

func newTestNames(t *testing.T, s *dnsSwitch) *names {
	return &names{dial: func(context.Context) (dnsConn, error) { return s, nil }, loop: s,
		log: slog.New(slog.DiscardHandler), learner: dnslearn.New(), journal: journal{file: filepath.Join(t.TempDir(), "names.jsonl")},
		problem: func(err error) {
			if err != nil {
				t.Error(err)
			}
		}}
}

// TestHeldAnswers: an answer with addresses waits until these are in the switch, but not for longer than its limit;
// others do not wait. The flow that holds answers ends with the learner. Another learner recalls what was learned.
func TestHeldAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newDNSSwitch()
		n := newTestNames(t, s)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- n.run(ctx, nil, func() {}) }()
		exchange := func(id uint16, name string, data byte) {
			query, answer := dnsFrames(t, id, name, netip.MustParseAddr("192.0.2.1"))
			s.packets <- ofconn.PacketIn{Data: []byte{flows.DNSQuery}, Frame: query}
			s.packets <- ofconn.PacketIn{Data: []byte{data}, Port: 7, Frame: answer}
			synctest.Wait()
		}
		want := func(what, sent string) {
			t.Helper()
			if got := s.output(); got != sent {
				t.Errorf("%s: sent on are %q, want %q", what, got, sent)
			}
		}
		exchange(0x6161, "a.example.", flows.DNSAnswer)
		want("a new name", "")
		exchange(0x6262, "other.test.", flows.DNSAnswer)
		want("a name that no policy has", "bb")
		exchange(0x6363, "c.example.", flows.DNSAnswerCopy)
		want("a copy", "bb")
		if got := s.learned("a.example").Addrs; len(got) != 1 || got[0] != netip.MustParseAddr("192.0.2.1") {
			t.Errorf("the loop was told %v", got)
		}
		if got := s.learned("c.example").Addrs; len(got) != 1 {
			t.Errorf("of a copy the loop was told %v", got)
		}
		time.Sleep(holdLimit + time.Millisecond)
		want("after the limit", "bb aa")
		exchange(0x6464, "d.example.", flows.DNSAnswer)
		want("another new name", "bb aa")
		close(s.programmed)
		synctest.Wait()
		want("programmed", "bb aa dd")
		exchange(0x6161, "a.example.", flows.DNSAnswer)
		want("a name that is known", "bb aa dd aa")
		s.mu.Lock()
		if left := time.Until(s.gate); left < 2*time.Second || left > 3*time.Second {
			t.Errorf("answers are held for %v more", left)
		}
		s.mu.Unlock()

		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if time.Until(s.gate) > 0 {
			t.Error("answers are held after the end")
		}
		again := newDNSSwitch()
		next := newTestNames(t, again)
		next.journal.file = n.journal.file
		if err := next.recall(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a.example", "c.example", "d.example"} {
			if len(again.learned(name).Addrs) != 1 {
				t.Errorf("%s is not recalled", name)
			}
		}
		next.want()
		again.view = &model.Snapshot{Policies: map[model.PolicyID]model.Policy{{}: {Domains: []string{"a.example"}}}}
		next.want()
		if !again.learned("c.example").Empty() || again.learned("a.example").Empty() {
			t.Error("a name that no policy has any more is known, or another one is forgotten")
		}
	})
}

// TestNamesEnd: an address whose TTL is over stays, for established connections, until none is to it.
func TestNamesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newDNSSwitch()
		close(s.programmed)
		n := newTestNames(t, s)
		var mu sync.Mutex
		used := true
		n.tracked = func(_ context.Context, _ uint16, each func(openflow.Connection)) error {
			mu.Lock()
			defer mu.Unlock()
			if used {
				each(openflow.Connection{Endpoint: netip.MustParseAddrPort("192.0.2.1:443")})
			}
			return nil
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- n.run(ctx, nil, func() {}) }()
		query, answer := dnsFrames(t, 1, "a.example.", netip.MustParseAddr("192.0.2.1"))
		s.packets <- ofconn.PacketIn{Data: []byte{flows.DNSQuery}, Frame: query}
		s.packets <- ofconn.PacketIn{Data: []byte{flows.DNSAnswer}, Port: 7, Frame: answer}
		time.Sleep(5 * time.Minute)
		if got := s.learned("a.example"); len(got.Addrs) != 0 || len(got.Ended) != 1 {
			t.Errorf("with a connection it is known as %+v", got)
		}
		mu.Lock()
		used = false
		mu.Unlock()
		time.Sleep(2 * time.Minute)
		if got := s.learned("a.example"); !got.Empty() {
			t.Errorf("without one it is known as %+v", got)
		}
		stop()
		<-ended
	})
}

// TestJournal: a file that ends within a line, and one that was rewritten, give what was learned last.
func TestJournal(t *testing.T) {
	j := journal{file: filepath.Join(t.TempDir(), "names.jsonl")}
	l := dnslearn.New()
	now := time.Now().Round(0).UTC()
	record := func(name string, ended bool) dnslearn.Record {
		return dnslearn.Record{Name: name, Addr: netip.MustParseAddr("192.0.2.1"), Until: now.Add(time.Hour), Ended: ended}
	}
	l.Recall([]dnslearn.Record{record("a.example", false)}, now)
	for range maxJournal {
		j.add([]dnslearn.Record{record("old.example", true)})
	}
	read := func(want int) []dnslearn.Record {
		t.Helper()
		records, err := j.read()
		if err != nil || len(records) != want {
			t.Fatalf("read %d records, %v; want %d", len(records), err, want)
		}
		return records
	}
	read(maxJournal)
	j.tidy(l)
	if got := read(1); got[0] != record("a.example", false) {
		t.Errorf("rewritten it has %+v", got)
	}
	j.add([]dnslearn.Record{record("b.example", true)})
	text, err := os.ReadFile(j.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(j.file, append(text, `{"name":"c.exam`...), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := read(2); got[1] != record("b.example", true) {
		t.Errorf("the second record is %+v", got[1])
	}
}
