package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/bench/result"
	"github.com/weft-cni/weft/test/datapath/burst"
	"github.com/weft-cni/weft/test/lab/podns"
)

// traffic measures what networks carry.
type traffic struct {
	duration    time.Duration
	connections int
	family      string
}

// atOnce is how many connections are under way in the cases that have several.
const atOnce = 16

// measure is how a kind of case is measured on a path.
type measure func(t traffic, ctx context.Context, n *network, p path, round int) (values, error)

// kinds are the kinds of cases, in their order.
var kinds = []struct {
	name    string
	measure measure
}{
	{"throughput", traffic.throughput}, {"packets", traffic.packets}, {"latency", traffic.latency},
	{"requests", traffic.requests}, {"connections", traffic.connect},
}

// cases are the cases of networks.
func (t traffic) cases(networks []*network) []benchCase {
	var cases []benchCase
	for _, kind := range kinds {
		for _, name := range []string{result.SameNode, result.AcrossNodes, result.Service, result.Policies} {
			c := benchCase{name: kind.name + "/" + name}
			for _, n := range networks {
				for _, p := range n.paths {
					if p.name == name {
						c.entries = append(c.entries, entry{n.system, func(ctx context.Context, round int) (values, error) {
							return kind.measure(t, ctx, n, p, round)
						}})
					}
				}
			}
			cases = append(cases, c)
		}
	}
	return cases
}

// bufferSize is what a sender writes, and a receiver reads, at once.
const bufferSize = 128 << 10

// arrival bounds the wait for the first of what is sent.
const arrival = 10 * time.Second

// warmUp is the part of the duration before the one that counts.
func (t traffic) warmUp() time.Duration { return t.duration / 5 }

func (t traffic) to(p path, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(of(p.address, t.family), port)
}

// throughput is what arrives of one stream.
func (t traffic) throughput(ctx context.Context, _ *network, p path, _ int) (values, error) {
	perSecond, err := t.send(ctx, p, "tcp", make([]byte, bufferSize), &p.to.sink.bytes)
	return values{"throughput": perSecond * 8 / 1e6}, err
}

// packets are the datagrams that arrive.
func (t traffic) packets(ctx context.Context, _ *network, p path, _ int) (values, error) {
	perSecond, err := t.send(ctx, p, "udp", make([]byte, 64), &p.to.sink.datagrams)
	return values{"packets": perSecond}, err
}

// send writes again and again, and returns by how much a counter of the receiver grows in a second.
func (t traffic) send(ctx context.Context, p path, proto string, message []byte, counter *atomic.Int64) (
	rate float64, err error) {
	conn, err := p.from.dial(proto, t.to(p, sinkPort))
	if err != nil {
		return 0, err
	}
	total := t.warmUp() + t.duration
	if err := conn.SetDeadline(time.Now().Add(total + arrival + testenv.Patience(5*time.Second))); err != nil {
		return 0, errors.Join(err, conn.Close())
	}
	var stop atomic.Bool
	sent := make(chan error, 1)
	go func() {
		for !stop.Load() {
			// A full queue, or what a receiver that could not keep up once said, fails no datagram.
			if _, err := conn.Write(message); err != nil && proto == "tcp" {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	err = pause(ctx, t.warmUp())
	if err == nil {
		before, begin := counter.Load(), time.Now()
		err = pause(ctx, t.duration)
		// Something has to arrive, however busy the machine is.
		for begun := time.Now(); err == nil && counter.Load() == before && time.Since(begun) < arrival; {
			err = pause(ctx, t.duration)
		}
		rate = float64(counter.Load()-before) / time.Since(begin).Seconds()
	}
	stop.Store(true)
	if err == nil && rate == 0 {
		err = fmt.Errorf("nothing arrived from %s", conn.LocalAddr())
	}
	// Close ends a write that waits.
	return rate, errors.Join(err, conn.Close(), ignoreClosed(<-sent))
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// latency is how long a byte takes there and back.
func (t traffic) latency(ctx context.Context, _ *network, p path, _ int) (values, error) {
	conn, err := p.from.dial("tcp", t.to(p, echoPort))
	if err != nil {
		return nil, err
	}
	trips, err := t.pingPong(ctx, conn)
	if err == nil && len(trips) == 0 {
		err = errNoTrip
	}
	if err := errors.Join(err, conn.Close()); err != nil {
		return nil, err
	}
	micros := make([]float64, len(trips))
	for i, d := range trips {
		micros[i] = float64(d.Nanoseconds()) / 1e3
	}
	return values{"latency-p50": result.Quantile(micros, 0.5), "latency-p99": result.Quantile(micros, 0.99)}, nil
}

var errNoTrip = errors.New("no round trip ended in time")

// pingPong sends bytes one after the other for the duration, after a warm-up, and returns how long each took.
func (t traffic) pingPong(ctx context.Context, conn net.Conn) ([]time.Duration, error) {
	begin := time.Now()
	end := begin.Add(t.warmUp() + t.duration)
	if err := conn.SetDeadline(end.Add(arrival + testenv.Patience(5*time.Second))); err != nil {
		return nil, err
	}
	var trips []time.Duration
	buf := []byte{1}
	for {
		sent := time.Now()
		// One trip at least, however busy the machine is: the deadline bounds it.
		if !sent.Before(end) && len(trips) > 0 || ctx.Err() != nil {
			break
		}
		if _, err := conn.Write(buf); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(conn, buf); err != nil {
			return nil, err
		}
		if sent.Sub(begin) >= t.warmUp() {
			trips = append(trips, time.Since(sent))
		}
	}
	return trips, ctx.Err()
}

// requests is how many round trips several connections make.
func (t traffic) requests(ctx context.Context, _ *network, p path, _ int) (values, error) {
	var clients sync.WaitGroup
	counts, errs := make([]int, atOnce), make([]error, atOnce)
	for i := range atOnce {
		clients.Go(func() {
			conn, err := p.from.dial("tcp", t.to(p, echoPort))
			if err != nil {
				errs[i] = err
				return
			}
			trips, err := t.pingPong(ctx, conn)
			counts[i], errs[i] = len(trips), errors.Join(err, conn.Close())
		})
	}
	clients.Wait()
	sum := 0
	for _, n := range counts {
		sum += n
	}
	if sum == 0 {
		errs = append(errs, errNoTrip)
	}
	return values{"requests": float64(sum) / t.duration.Seconds()}, errors.Join(errs...)
}

// connect is how many connections are made, and what they cost the switches.
func (t traffic) connect(_ context.Context, n *network, p path, round int) (values, error) {
	before, err := n.processorTime()
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	if err := t.burst(p, round, t.connections); err != nil {
		return nil, err
	}
	took := time.Since(begin)
	after, err := n.processorTime()
	found := values{"connections": float64(t.connections) / took.Seconds()}
	if len(n.switches) > 0 {
		found["switch-cpu"] = float64((after - before).Milliseconds()) * 1000 / float64(t.connections)
	}
	return found, err
}

// firstPort and portsInAll are the source ports of connections; each round takes others, as long as there are some.
const (
	firstPort  = 10000
	portsInAll = 20000
)

// burst makes connections from ports that the rounds before did not use. burst.Burst leaves none behind.
func (t traffic) burst(p path, round, count int) error {
	at := 0
	if sets := portsInAll / count; sets > 0 {
		at = round % sets * count
	}
	return burst.Burst{From: p.from.ns, Proto: podns.TCP, To: t.to(p, echoPort), FirstPort: firstPort + uint16(at),
		Count: count, Workers: atOnce, Timeout: testenv.Patience(5 * time.Second)}.Run()
}

// sink counts what arrives at a port, over TCP and UDP.
type sink struct {
	tcp              net.Listener
	udp              *net.UDPConn
	bytes, datagrams atomic.Int64
}

// serveSink listens in a namespace.
func serveSink(ns podns.Namespace, port uint16) (*sink, error) {
	s := &sink{}
	if err := ns.Do(func() (err error) {
		if s.tcp, err = net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)}); err != nil {
			return err
		}
		if s.udp, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)}); err != nil {
			return errors.Join(err, s.tcp.Close())
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("serve on port %d: %w", port, err)
	}
	go s.accept()
	go s.count()
	return s, nil
}

// Close ends the server.
func (s *sink) Close() error { return errors.Join(s.tcp.Close(), s.udp.Close()) }

func (s *sink) accept() {
	for {
		conn, err := s.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the client has reset it already
		}
		go func() {
			buf := make([]byte, bufferSize)
			for {
				n, err := conn.Read(buf)
				s.bytes.Add(int64(n))
				if err != nil {
					_ = conn.Close() // the client has ended
					return
				}
			}
		}()
	}
}

func (s *sink) count() {
	buf := make([]byte, 2048)
	for {
		_, _, err := s.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			s.datagrams.Add(1)
		}
	}
}
