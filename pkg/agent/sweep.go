package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/programmer"
)

// The sweep ends connections in the switch's tracker that what is programmed contradicts: policies deny them, their
// Service would balance them otherwise, or their pod is gone (flows.Audit). What the flows decide packet by packet
// needs no sweep: it is for connections whose original direction is silent, and for what a later pod or endpoint
// would inherit.

// connections is the switch's connection tracker, as the sweeper needs it (connectionTracker).
type connections interface {
	Connections(ctx context.Context, zone uint16, each func(openflow.Connection)) error
	Deny(ctx context.Context, denied []openflow.Connection) error
	Allow(ctx context.Context, allowed []openflow.Connection) error
	Remove(ctx context.Context, c openflow.Connection) error
}

const (
	// maxEnded bounds what one round ends: it takes the switch 0.2 ms for each.
	maxEnded = 4096
	// sweepShare is how many times as long as the reading of the connections took the next one waits: the switch's
	// main thread, which forwards the packets of the userspace datapath, spends at most a fifth of its time on
	// sweeps.
	sweepShare = 4
)

var endedConnections = prometheus.NewCounterVec(prometheus.CounterOpts{
	Name: "weft_swept_connections_total",
	Help: "Connections in the switch's tracker that a sweep has ended, by cause: policies deny them, their endpoint " +
		"serves no more, or their pod is gone; or that policies allow again.",
}, []string{"cause"})

// sweeper makes sweeps, one at a time. Its sync runs on a goroutine of its own; the other methods may be called from
// anywhere.
type sweeper struct {
	switched   connections
	programmed func() (*model.Snapshot, map[model.Owner]error)
	log        *slog.Logger
	wake       chan struct{}

	mu            sync.Mutex
	next, running *sweep
	// denied says that there may be connections that policies allowed and deny now.
	denied bool

	free time.Time // of sync's goroutine: when the switch may be read again
}

// sweep is what several requests ask for.
type sweep struct {
	gone  map[netip.Addr]bool
	start bool
	done  chan struct{} // closed when it has ended, well or not
}

func newSweeper(c connections, programmed func() (*model.Snapshot, map[model.Owner]error), log *slog.Logger) *sweeper {
	return &sweeper{switched: c, programmed: programmed, log: log, wake: make(chan struct{}, 1)}
}

// request asks for a sweep. It never blocks.
func (s *sweeper) request(r programmer.SweepRequest) {
	s.mu.Lock()
	if r.Wider && !s.denied {
		s.mu.Unlock()
		return
	}
	s.denied = true // until a sweep finds none
	next := s.open()
	for _, ip := range r.Gone {
		next.gone[ip] = true
	}
	next.start = next.start || r.Start
	s.mu.Unlock()
	notify(s.wake)
}

// open is the sweep that has not begun yet.
func (s *sweeper) open() *sweep {
	if s.next == nil {
		s.next = &sweep{gone: map[netip.Addr]bool{}, done: make(chan struct{})}
	}
	return s.next
}

// await returns when no sweep is to come that removes connections of former pods with these addresses. It does not
// wait for another try of a sweep that fails: a pod with old connections is better than none.
func (s *sweeper) await(ctx context.Context, addrs []netip.Addr) error {
	s.mu.Lock()
	var wait []*sweep
	for _, one := range []*sweep{s.running, s.next} {
		for _, ip := range addrs {
			if one != nil && one.gone[ip] {
				wait = append(wait, one)
				break
			}
		}
	}
	s.mu.Unlock()
	for _, one := range wait {
		select {
		case <-one.done:
		case <-ctx.Done():
			return fmt.Errorf("remove connections of the pods that had %v before: %w", addrs, context.Cause(ctx))
		}
	}
	return nil
}

// sync makes the sweep that was asked for, in as many rounds as it takes.
func (s *sweeper) sync(ctx context.Context) error {
	s.mu.Lock()
	s.running, s.next = s.next, nil
	now := s.running
	s.mu.Unlock()
	if now == nil {
		return nil
	}
	var err error
	for more := true; more && err == nil; {
		if pause := time.Until(s.free); pause > 0 {
			sleep(ctx, pause)
		}
		if err = ctx.Err(); err == nil {
			more, err = s.round(ctx, now)
		}
	}
	s.mu.Lock()
	s.running = nil
	if err != nil { // keep calls again
		next := s.open()
		maps.Copy(next.gone, now.gone)
		next.start = next.start || now.start
	}
	s.mu.Unlock()
	close(now.done)
	return err
}

// round reads the connections once, and ends those that are to be ended, or as many as one round may.
func (s *sweeper) round(ctx context.Context, now *sweep) (more bool, err error) {
	snapshot, _ := s.programmed()
	zones := flows.Zones(snapshot.KernelDatapath)
	if !now.start && len(now.gone) == 0 {
		zones = zones[:1] // only a detached pod leaves anything to remove in the others
	}
	var errs []error
	var denied, allowed, gone []openflow.Connection
	still := false // some are denied
	causes := map[flows.Cause]int{}
	for _, zone := range zones {
		began := time.Now()
		// After the reading, so that it knows whatever allowed a connection that was read.
		audit := sync.OnceValue(func() *flows.Audit {
			snapshot, quarantined := s.programmed()
			return flows.NewAudit(snapshot, quarantined, now.gone)
		})
		errs = append(errs, s.switched.Connections(ctx, zone, func(c openflow.Connection) {
			cause := audit().Check(c)
			still = still || audit().Denied(c)
			switch {
			case cause == "":
				return
			case len(denied)+len(allowed)+len(gone) == maxEnded:
				more = true
				return
			case cause == flows.PolicyDenies:
				denied = append(denied, c)
			case cause == flows.PolicyAllows:
				allowed = append(allowed, c)
			default:
				gone = append(gone, c)
			}
			causes[cause]++
		}))
		s.free = time.Now().Add(sweepShare * time.Since(began))
	}
	if err := errors.Join(s.switched.Deny(ctx, denied), s.switched.Allow(ctx, allowed)); err != nil {
		return false, errors.Join(append(errs, err)...)
	}
	for _, c := range gone {
		if err := s.switched.Remove(ctx, c); err != nil {
			return false, errors.Join(append(errs, err)...)
		}
	}
	for cause, n := range causes {
		endedConnections.WithLabelValues(string(cause)).Add(float64(n))
	}
	if len(causes) > 0 {
		s.log.Info("ended connections", "policy", causes[flows.PolicyDenies], "allowed", causes[flows.PolicyAllows],
			"endpoint", causes[flows.EndpointGone], "pod", causes[flows.PodGone], "more", more)
	}
	err = errors.Join(errs...)
	s.mu.Lock()
	if err == nil && s.next == nil { // no other change since
		s.denied = still || more
	}
	s.mu.Unlock()
	return more, err
}

// cleanFlows is the loop for CNI: a pod begins without the connections of the pod that had its addresses before.
type cleanFlows struct {
	*programmer.Loop
	sweeper *sweeper
}

// Attach waits for sweeps of the pod's addresses first.
func (f cleanFlows) Attach(ctx context.Context, a model.Attachment) error {
	if err := f.sweeper.await(ctx, a.IPs); err != nil {
		return err
	}
	return f.Loop.Attach(ctx, a)
}
