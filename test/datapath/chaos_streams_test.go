//go:build integration

package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

const (
	// chaosDialEvery is the time between two new connections of a route, and chaosStreamEvery that between two messages
	// of an established one.
	chaosDialEvery   = 500 * time.Millisecond
	chaosStreamEvery = 200 * time.Millisecond
	// chaosSegment is the size of a message.
	chaosSegment = 256
	// chaosGiveUp is how long TCP tries to deliver something. It is longer than any pause that a fault may cause.
	chaosGiveUp = 60 * time.Second
)

// chaosTCP listens for both: connections that end with one answer, and those that stay.
type chaosTCP struct {
	*echoServer
	chaos    *chaos
	listener net.Listener
	end      chan struct{}
	done     sync.WaitGroup
}

// serveTCP listens until the test ends. The first message of a connection says by its size of what use it is: of
// chaosSegment bytes begins one that stays.
func (c *chaos) serveTCP(at *client, port uint16) *chaosTCP {
	c.t.Helper()
	s := &chaosTCP{echoServer: &echoServer{name: at.name + " (TCP)", wrong: map[string]int{}}, chaos: c,
		end: make(chan struct{})}
	if err := at.ns.Do(func() (err error) {
		s.listener, err = (&net.ListenConfig{}).Listen(c.t.Context(), "tcp", fmt.Sprintf(":%d", port))
		return err
	}); err != nil {
		c.t.Fatal(err)
	}
	s.done.Go(func() {
		for {
			conn, err := s.listener.Accept()
			if err != nil {
				return
			}
			s.done.Go(func() { s.serve(conn) })
		}
	})
	c.t.Cleanup(func() {
		close(s.end)
		s.listener.Close()
		s.done.Wait()
	})
	return s
}

// greeting begins a connection: the number of its stream, 0 for one that ends with the answer, and whether it is
// allowed.
func greeting(stream int, k kind) []byte { return chaosMessage(uint64(stream), k, 16) }

func (s *chaosTCP) serve(conn net.Conn) {
	defer closedAtEnd(conn, s.end)()
	first := make([]byte, 16)
	_ = conn.SetReadDeadline(time.Now().Add(testenv.Patience(chaosGiveUp)))
	if _, err := io.ReadFull(conn, first); err != nil {
		return // its client has given up
	}
	if kind(first[8]) != allowed {
		s.note(fmt.Sprintf("a forbidden connection from %s", unmapped(conn.RemoteAddr()).Addr()))
	}
	if number := binary.BigEndian.Uint64(first); number > 0 {
		_ = conn.SetReadDeadline(time.Time{})
		s.chaos.streams[number-1].run(atServer, conn, s.end)
		return
	}
	_, _ = conn.Write(first) // the client counts what it does not get
}

// closedAtEnd closes a connection when the test ends, or when what it returns is called.
func closedAtEnd(conn net.Conn, end <-chan struct{}) (closeNow func()) {
	closed := make(chan struct{})
	go func() {
		select {
		case <-end:
		case <-closed:
		}
		conn.Close()
	}()
	return func() { close(closed) }
}

// dialer makes one connection after the other, each with a question and an answer.
type dialer struct {
	series
	from *client
	to   netip.AddrPort
	kind kind
}

func startDialer(t *testing.T, from *client, to netip.AddrPort, k kind, name string) *dialer {
	t.Helper()
	d := &dialer{series: series{name: name, every: testenv.Patience(chaosDialEvery)}, from: from, to: to, kind: k}
	end := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		repeat(end, d.every, func() {
			number := d.begin()
			done.Go(func() {
				if d.dial() == nil {
					d.succeed(number)
				}
			})
		})
	})
	t.Cleanup(func() { close(end); done.Wait() })
	return d
}

func (d *dialer) dial() error {
	deadline := time.Now().Add(chaosPatience())
	conn, err := connect(d.from, d.to, deadline)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := conn.Write(greeting(0, d.kind)); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 16))
	return err
}

func connect(from *client, to netip.AddrPort, deadline time.Time) (conn net.Conn, err error) {
	err = from.ns.Do(func() (err error) {
		d := net.Dialer{Deadline: deadline}
		conn, err = d.Dial("tcp", to.String())
		return err
	})
	return conn, err
}

// The ends of a stream.
const (
	atClient = iota
	atServer
)

// chaosStream is an established TCP connection on which both ends send numbered messages without end. One that breaks
// is noted and connected again.
type chaosStream struct {
	name   string
	number int
	from   *client
	to     netip.AddrPort
	// translated says that only the switch's connection tracking knows which endpoint of a Service it goes to, and
	// masqueraded that an address is node1's own, or translated by its kernel.
	translated, masqueraded bool

	mu     sync.Mutex
	conns  [2]net.Conn    // the newest, at each end
	got    [2][]time.Time // when each end received something
	broken []breakage
}

// breakage is the end of a connection that its ends did not want to end.
type breakage struct {
	at  time.Time
	why string
}

// startStream connects and goes on until the test ends.
func (c *chaos) startStream(s *chaosStream) {
	c.streams = append(c.streams, s)
	s.number = len(c.streams)
	end := make(chan struct{})
	var done sync.WaitGroup
	c.t.Cleanup(func() { close(end); done.Wait() })
	c.later = append(c.later, func() {
		done.Go(func() {
			s.connectAndRun(end)
			repeat(end, testenv.Patience(chaosDialEvery), func() { s.connectAndRun(end) })
		})
	})
}

// connectAndRun makes the connection and returns when it is broken.
func (s *chaosStream) connectAndRun(end <-chan struct{}) {
	conn, err := connect(s.from, s.to, time.Now().Add(chaosPatience()))
	if err != nil {
		return // it is tried again, and the time without a message grows
	}
	defer closedAtEnd(conn, end)()
	if _, err := conn.Write(greeting(s.number, allowed)); err == nil {
		s.run(atClient, conn, end)
	}
}

// run sends and receives at one end until the connection ends, or another one follows it.
func (s *chaosStream) run(at int, conn net.Conn, end <-chan struct{}) {
	s.mu.Lock()
	if before := s.conns[at]; before != nil {
		before.Close()
	}
	s.conns[at] = conn
	s.mu.Unlock()
	if err := giveUpAfter(conn, testenv.Patience(chaosGiveUp)); err != nil {
		s.note(at, err, end)
		return
	}
	gone := make(chan struct{})
	var sender sync.WaitGroup
	sender.Go(func() {
		number := uint64(0)
		repeat(gone, testenv.Patience(chaosStreamEvery), func() {
			_, _ = conn.Write(chaosMessage(number, allowed, chaosSegment)) // reading notices as well
			number++
		})
	})
	message := make([]byte, chaosSegment)
	for number := uint64(0); ; number++ {
		_, err := io.ReadFull(conn, message)
		if err == nil && (binary.BigEndian.Uint64(message) != number || !isWhole(message)) {
			err = fmt.Errorf("message %d is damaged: %.20x…", number, message)
		}
		if err != nil {
			s.note(at, err, end)
			break
		}
		s.mu.Lock()
		s.got[at] = append(s.got[at], time.Now())
		s.mu.Unlock()
	}
	close(gone)
	conn.Close()
	sender.Wait()
}

// giveUpAfter bounds how long a connection lives whose other end does not acknowledge what is sent.
func giveUpAfter(conn net.Conn, d time.Duration) error {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T is not a socket", conn)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	}); err != nil {
		return err
	}
	return set
}

// note remembers a breakage, but not that the other end closed its side after one, or that another connection followed.
func (s *chaosStream) note(at int, err error, end <-chan struct{}) {
	select {
	case <-end:
		return
	default:
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = append(s.broken, breakage{time.Now(), fmt.Sprintf("at its %s: %v", [...]string{"client", "server"}[at],
		err)})
}

// breakages are those since a time.
func (s *chaosStream) breakages(from time.Time) (list []breakage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.broken {
		if !b.at.Before(from) {
			list = append(list, b)
		}
	}
	return list
}

// pause is the longest time from a time on in which one of the ends received nothing.
func (s *chaosStream) pause(from time.Time) (longest time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, got := range s.got {
		first, _ := slices.BinarySearchFunc(got, from, time.Time.Compare)
		last := from
		for _, at := range got[first:] {
			longest, last = max(longest, at.Sub(last)), at
		}
		longest = max(longest, now.Sub(last))
	}
	return longest
}
