package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-cni/weft/pkg/dnslearn"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofconn"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
)

// names learns addresses of domain names from DNS answers to pods, while policies have domain names as peers. An answer
// with addresses is held until the switch has them, so that the pod's first connection finds them there. An answer is
// never held for longer than holdLimit, never dropped while the agent runs, and passes by itself while the agent is
// away (flows.AnswerGate).
//
// Its run and recall are called one after the other; all else is in goroutines of run.
type names struct {
	dial    func(context.Context) (dnsConn, error)
	loop    namesLoop
	tracked func(ctx context.Context, zone uint16, each func(openflow.Connection)) error
	journal journal
	log     *slog.Logger
	problem func(error)

	learner *dnslearn.Learner
	domains []policy.Domain // that the learner wants; nil before it was told
	// latest is the revision of what was submitted last, done one that is programmed.
	latest programmer.Revision
	done   atomic.Uint64

	rejected string // what the switch rejected last
}

// dnsConn is the connection to the switch (*ofconn.Conn).
type dnsConn interface {
	Next() (ofconn.PacketIn, error)
	Output(port uint32, frame []byte) error
	Lead(table, to openflow.TableID, cookie uint64, priority, seconds uint16) error
	Close() error
}

// namesLoop is the programmer's loop.
type namesLoop interface {
	Submit(c state.Change)
	Submitted() programmer.Revision
	Programmed(ctx context.Context, r programmer.Revision, owners ...model.Owner) error
	View() *model.Snapshot
}

const (
	// holdLimit is how long an answer is held at most: less than the 5 s after which resolvers ask again.
	holdLimit = 2 * time.Second
	// maxPackets are packets that wait to be read, maxHeld answers that are held. What is beyond is sent on unread.
	maxPackets, maxHeld = 1024, 1024
	// gateEvery is how often the flow that holds answers is renewed.
	gateEvery = 500 * time.Millisecond
	// expireEvery is how often the times of addresses are looked at, forgetEvery how often the connections are to those
	// whose time is over.
	expireEvery = time.Second
	forgetEvery = time.Minute
	// redialPause is how long it waits before it connects again.
	redialPause = time.Second
)

var dnsAnswers = prometheus.NewCounterVec(prometheus.CounterOpts{
	Name: "weft_dns_answers_total",
	Help: "Answers of DNS servers to pods that policies with domain names select: held until their addresses were in the " +
		"switch (held), those of them that were sent on before because that took more than 2 s or too many waited (late), " +
		"and those sent on unread because too many came at once (unread).",
}, []string{"outcome"})

var (
	dnsHeld   = dnsAnswers.WithLabelValues("held")
	dnsLate   = dnsAnswers.WithLabelValues("late")
	dnsUnread = dnsAnswers.WithLabelValues("unread")
)

func (a *Agent) newNames() *names {
	socket := filepath.Join(a.ovsRunDir(), model.BridgeName+".mgmt")
	return &names{
		dial: func(ctx context.Context) (dnsConn, error) {
			c, err := ofconn.Dial(ctx, socket, flows.DNSController)
			if err != nil {
				return nil, err
			}
			return c, nil
		},
		loop: a.loop, tracked: a.sw.Connections, log: a.log, learner: dnslearn.New(),
		journal: journal{file: filepath.Join(filepath.Dir(a.opt.CNISocket), "names.jsonl")},
		problem: func(err error) { a.setProblem(namesPart, err) },
	}
}

// recall submits what an earlier agent has learned, before the switch is programmed: its flows stay.
func (n *names) recall(context.Context) error {
	records, err := n.journal.read()
	if err != nil {
		n.log.Warn("learned domain names are forgotten", "err", err)
	}
	n.submit(n.learner.Recall(records, time.Now()))
	return nil
}

// run learns until the context ends.
func (n *names) run(ctx context.Context, woken <-chan struct{}, ready func()) error {
	ready()
	for ctx.Err() == nil {
		n.want()
		if !model.AnyDomains(n.loop.View().Policies) {
			n.problem(nil)
			select {
			case <-ctx.Done():
			case <-woken:
			}
			continue
		}
		err := n.learn(ctx, woken)
		n.problem(err)
		if err != nil {
			sleep(ctx, redialPause)
		}
	}
	return nil
}

// want tells the learner which names policies have.
func (n *names) want() {
	var domains []policy.Domain
	for _, p := range n.loop.View().Policies {
		for _, d := range p.Domains {
			domains = append(domains, policy.Domain(d))
		}
	}
	slices.Sort(domains)
	if domains = slices.Compact(domains); n.domains == nil || !slices.Equal(domains, n.domains) {
		n.domains = append([]policy.Domain{}, domains...)
		n.submit(n.learner.Want(domains))
	}
}

// submit has the switch programmed with what is known of names, which is written down before.
func (n *names) submit(changed []string) {
	if len(changed) == 0 {
		return
	}
	for _, name := range changed {
		n.journal.add(n.learner.Records(name))
		n.loop.Submit(state.SetName{Name: name, Learned: n.learner.Name(name)})
	}
	n.latest = n.loop.Submitted()
}

// heldAnswer is an answer that waits for a revision.
type heldAnswer struct {
	ofconn.PacketIn
	revision programmer.Revision
	deadline time.Time
}

// learn connects to the switch and learns until no policy has domain names any more, the context ends, or, with an
// error, the connection does.
func (n *names) learn(ctx context.Context, woken <-chan struct{}) (err error) {
	conn, err := n.dial(ctx)
	if err != nil {
		return err
	}
	packets, failed := make(chan ofconn.PacketIn, maxPackets), make(chan error, 1)
	held := make(chan heldAnswer, maxHeld)
	var readers, releasers sync.WaitGroup
	readers.Go(func() { failed <- n.read(conn, packets) })
	releasers.Go(func() {
		for answer := range held {
			n.release(ctx, conn, answer)
		}
	})
	defer func() {
		err = errors.Join(err, n.gate(conn, 0))
		close(held)
		releasers.Wait()
		err = errors.Join(err, conn.Close())
		readers.Wait()
		if ctx.Err() != nil {
			err = nil
		}
	}()

	gate, expire, forget := time.NewTicker(gateEvery), time.NewTicker(expireEvery), time.NewTicker(forgetEvery)
	defer gate.Stop()
	defer expire.Stop()
	defer forget.Stop()
	unused := make(chan map[netip.Addr]bool, 1)
	if err := n.gate(conn, flows.GateSeconds); err != nil {
		return err
	}
	n.problem(nil)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case p := <-packets:
			if err := n.packet(conn, p, held); err != nil {
				return err
			}
		case <-woken:
			n.want()
			if !model.AnyDomains(n.loop.View().Policies) {
				return nil
			}
		case <-gate.C:
			if err := n.gate(conn, flows.GateSeconds); err != nil {
				return err
			}
		case now := <-expire.C:
			n.submit(n.learner.Expire(now))
			n.journal.tidy(n.learner)
		case now := <-forget.C:
			if ended := n.learner.Ended(now); len(ended) > 0 && len(unused) == 0 {
				go func() { unused <- n.unused(ctx, ended) }()
			}
		case addrs := <-unused:
			n.submit(n.learner.Forget(addrs))
		}
	}
}

// gate renews the flow that holds answers; with no seconds it removes it.
func (n *names) gate(conn dnsConn, seconds uint16) error {
	return conn.Lead(flows.AnswerGate, flows.AnswerHold, flows.Cookie(model.SelfOwner), flows.GatePriority, seconds)
}

// read reads packets until the connection ends.
func (n *names) read(conn dnsConn, packets chan<- ofconn.PacketIn) error {
	for {
		p, err := conn.Next()
		var rejected *ofconn.RejectedError
		switch {
		case errors.As(err, &rejected): // the port of a pod that is gone
			if n.rejected != err.Error() {
				n.rejected = err.Error()
				n.log.Warn("DNS answers: " + n.rejected)
			}
			continue
		case err != nil:
			return err
		}
		select {
		case packets <- p:
		default:
			dnsUnread.Inc()
			if err := forward(conn, p); err != nil {
				return err
			}
		}
	}
}

// forward sends an answer on that is the agent's to send on.
func forward(conn dnsConn, p ofconn.PacketIn) error {
	if len(p.Data) != 1 || p.Data[0] != flows.DNSAnswer || p.Port == 0 {
		return nil
	}
	return conn.Output(p.Port, p.Frame)
}

// packet learns from a packet. An answer is sent on when the switch has what it says.
func (n *names) packet(conn dnsConn, p ofconn.PacketIn, held chan<- heldAnswer) error {
	now := time.Now()
	if len(p.Data) != 1 {
		return nil
	}
	if p.Data[0] == flows.DNSQuery {
		n.learner.Query(p.Frame, now)
		return nil
	}
	changed, wanted := n.learner.Answer(p.Frame, now)
	n.submit(changed)
	if !wanted || p.Data[0] != flows.DNSAnswer || uint64(n.latest) <= n.done.Load() {
		return forward(conn, p)
	}
	dnsHeld.Inc()
	select {
	case held <- heldAnswer{p, n.latest, now.Add(holdLimit)}:
		return nil
	default:
		dnsLate.Inc()
		return forward(conn, p)
	}
}

// release sends an answer on when its revision is programmed, or its time is over.
func (n *names) release(ctx context.Context, conn dnsConn, answer heldAnswer) {
	if uint64(answer.revision) > n.done.Load() {
		ctx, cancel := context.WithDeadline(ctx, answer.deadline)
		if err := n.loop.Programmed(ctx, answer.revision); err != nil {
			dnsLate.Inc()
		} else {
			n.done.Store(uint64(answer.revision))
		}
		cancel()
	}
	_ = forward(conn, answer.PacketIn) // without a connection, read fails, too
}

// unused are those of some addresses that no connection is to.
func (n *names) unused(ctx context.Context, addrs map[netip.Addr]bool) map[netip.Addr]bool {
	err := n.tracked(ctx, flows.Zone, func(c openflow.Connection) { delete(addrs, c.Endpoint.Addr()) })
	if err != nil {
		n.problem(fmt.Errorf("find addresses of domain names without connections: %w", err))
		return nil
	}
	return addrs
}
