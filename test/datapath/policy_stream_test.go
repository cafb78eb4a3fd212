//go:build integration

package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/podns"
)

const (
	// streamEvery is the time between two messages of a stream. The userspace datapath reads all pods' packets in one
	// thread, from short queues: what they cannot take on a busy machine is lost, and would pass for a policy's doing.
	streamEvery = 25 * time.Millisecond
	datagram    = 64
	// segment is what a TCP stream writes at once, and backlog what it may have under way: a queue on a busy machine
	// would have TCP wait for long before it tries again what a policy has stopped.
	segment = 1 << 10
	backlog = 2 << 10
)

// stream is a connection through which one side sends without end.
type stream struct {
	name string
	// sending and receiving are the two ends; of TCP, connections.
	sending, receiving net.Conn
	proto              podns.Proto
	every              time.Duration
	// answered is not set on streams of datagrams whose sender has never heard anything from the other side.
	answered bool

	mu   sync.Mutex
	sent []outgoing
	seen map[uint64]bool // numbers of datagrams
	got  []time.Time

	end  chan struct{}
	done sync.WaitGroup
}

// outgoing is a message that left.
type outgoing struct {
	number uint64
	at     time.Time
}

// streamTo connects from a client to a server, whose address may be a Service's, and has the client send, or the server
// while the client is silent. To an IPv6 address a client that sends datagrams never hears anything.
func (c *client) streamTo(t *testing.T, server *client, l *listeners, proto podns.Proto, to netip.AddrPort,
	fromServer bool, name string) *stream {
	t.Helper()
	s := newStream(name, proto)
	var mine, theirs net.Conn
	testenv.Eventually(t, 10*time.Second, func() (err error) {
		mine, theirs, err = c.meet(l, proto, to)
		return err
	})
	s.sending, s.receiving, s.answered = mine, theirs, fromServer || proto == podns.TCP || to.Addr().Is4()
	if proto == podns.UDP && s.answered {
		if _, err := theirs.Write([]byte("!")); err != nil {
			t.Fatal(err)
		}
	}
	if fromServer {
		s.sending, s.receiving = theirs, mine
	}
	s.start(t)
	return s
}

func newStream(name string, proto podns.Proto) *stream {
	return &stream{name: name, proto: proto, every: streamEvery, seen: map[uint64]bool{}, end: make(chan struct{})}
}

// start begins to send, until the test ends at the latest.
func (s *stream) start(t *testing.T) {
	t.Helper()
	if conn, ok := s.sending.(*net.TCPConn); ok {
		if err := conn.SetWriteBuffer(backlog); err != nil {
			t.Fatal(err)
		}
	}
	s.done.Add(2)
	go s.send()
	go s.receive()
	t.Cleanup(s.close)
}

func (s *stream) send() {
	defer s.done.Done()
	buf := make([]byte, datagram)
	if s.proto == podns.TCP {
		buf = make([]byte, segment)
	}
	ticker := time.NewTicker(s.every)
	defer ticker.Stop()
	for n := uint64(1); ; n++ {
		select {
		case <-s.end:
			return
		case <-ticker.C:
		}
		binary.BigEndian.PutUint64(buf, n)
		_ = s.sending.SetWriteDeadline(time.Now().Add(streamEvery)) // a TCP stream that is stopped fills its buffer
		if _, err := s.sending.Write(buf); err == nil {
			s.mu.Lock()
			s.sent = append(s.sent, outgoing{n, time.Now()})
			s.mu.Unlock()
		}
	}
}

func (s *stream) receive() {
	defer s.done.Done()
	buf := make([]byte, 1<<16)
	for {
		n, err := s.receiving.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 8 {
			select {
			case <-s.end:
				return
			case <-time.After(time.Millisecond):
			}
			continue
		}
		s.mu.Lock()
		if s.proto == podns.UDP {
			s.seen[binary.BigEndian.Uint64(buf)] = true
		}
		s.got = append(s.got, time.Now())
		s.mu.Unlock()
	}
}

// allFlow waits until something has come after now through every stream.
func allFlow(t *testing.T, what string, all []*stream) {
	t.Helper()
	now := time.Now()
	testenv.Eventually(t, 20*time.Second, func() error {
		var still []string
		for _, s := range all {
			if s.after(now) == 0 {
				still = append(still, s.name)
			}
		}
		if len(still) > 0 {
			return fmt.Errorf("%s: nothing arrives of %d: %s", what, len(still), strings.Join(still, "; "))
		}
		return nil
	})
	t.Logf("%s: all %d streams flow after %s", what, len(all), time.Since(now).Round(time.Millisecond))
}

// nothingLost ends streams, and fails for every datagram that was sent and does not arrive a little later.
func (w *walled) nothingLost(t *testing.T, begin time.Time, all []*stream) {
	t.Helper()
	defer func() {
		if t.Failed() {
			w.datapathDrops(t)
		}
	}()
	for _, s := range all {
		s.stop()
	}
	sent, longest := 0, time.Duration(0)
	for _, s := range all {
		if s.proto == podns.UDP {
			if lost := s.lost(); len(lost) > 0 {
				t.Errorf("%s: %d of %d datagrams of a connection that was allowed all the while were lost, from %s to %s after "+
					"the beginning",
					s.name, len(lost), len(s.sent), lost[0].at.Sub(begin), lost[len(lost)-1].at.Sub(begin))
			}
		}
		longest = max(longest, s.gap(begin))
		sent += len(s.sent)
	}
	t.Logf("%d streams that stayed allowed sent %d messages in %.1f s; the longest gap was %s", len(all), sent,
		time.Since(begin).Seconds(), longest.Round(time.Millisecond))
}

// datapathDrops shows what the datapath itself has dropped: what it could not take is not a policy's doing.
func (w *walled) datapathDrops(t *testing.T) {
	t.Helper()
	for _, n := range w.Status().Nodes {
		for line := range strings.Lines(w.Run("node/"+n.Name, "ovs-appctl", "coverage/show")) {
			if strings.Contains(line, "drop") || strings.Contains(line, "upcall") {
				t.Logf("%s: %s", n.Name, strings.TrimSpace(line))
			}
		}
		show := w.Run("node/"+n.Name, "ovs-appctl", "dpctl/show")
		for line := range strings.Lines(show) {
			if strings.Contains(line, "lookups:") { // with the upcalls that were lost
				t.Logf("%s: %s", n.Name, strings.TrimSpace(line))
			}
		}
	}
}

// after counts what has come after a time.
func (s *stream) after(at time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, got := range s.got {
		if got.After(at) {
			n++
		}
	}
	return n
}

// last is when the last of it came.
func (s *stream) last() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.got) == 0 {
		return time.Time{}
	}
	return s.got[len(s.got)-1]
}

// gap is the longest time without anything from a time on.
func (s *stream) gap(from time.Time) (longest time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := from
	for _, got := range s.got {
		if got.After(from) {
			longest, last = max(longest, got.Sub(last)), got
		}
	}
	return longest
}

// lost returns the datagrams that were sent and have not arrived a little later.
func (s *stream) lost() (lost []outgoing) {
	for deadline := time.Now().Add(500 * time.Millisecond); ; time.Sleep(10 * time.Millisecond) {
		lost = nil
		s.mu.Lock()
		for _, o := range s.sent {
			if !s.seen[o.number] {
				lost = append(lost, o)
			}
		}
		s.mu.Unlock()
		if len(lost) == 0 || time.Now().After(deadline) {
			return lost
		}
	}
}

// stop ends the sending.
func (s *stream) stop() {
	select {
	case <-s.end:
	default:
		close(s.end)
	}
}

func (s *stream) close() {
	s.stop()
	_ = s.sending.Close()
	_ = s.receiving.Close()
	s.done.Wait()
}

// listeners are a server's sockets: streams of TCP wait to be accepted, those of UDP get a connected socket each.
type listeners struct {
	server *client
	port   uint16
	tcp    net.Listener

	mu      sync.Mutex
	waiting map[netip.AddrPort]chan net.Conn // by the client's address
	udp     map[netip.AddrPort]*peer
	packets *net.UDPConn
}

// serve listens in the client's pod.
func (c *client) serve(t *testing.T, port uint16) *listeners {
	t.Helper()
	l := &listeners{server: c, port: port, waiting: map[netip.AddrPort]chan net.Conn{}, udp: map[netip.AddrPort]*peer{}}
	if err := c.ns.Do(func() (err error) {
		if l.tcp, err = net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)}); err != nil {
			return err
		}
		l.packets, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		return err
	}); err != nil {
		t.Fatalf("listen in %s: %v", c.name, err)
	}
	if err := deepBuffer(l.packets); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = l.tcp.Close(), l.packets.Close() })
	go l.accept()
	go l.read()
	return l
}

// deepBuffer lets a socket hold what comes while this process waits for a processor: by default that are about 270
// short datagrams, which 1,000 a second fill in a quarter of a second.
func deepBuffer(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	})
	return errors.Join(err, os.NewSyscallError("setsockopt", set))
}

func unmapped(a net.Addr) netip.AddrPort {
	p := netip.MustParseAddrPort(a.String())
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

func (l *listeners) accept() {
	for {
		conn, err := l.tcp.Accept()
		if err != nil {
			return
		}
		select {
		case l.from(unmapped(conn.RemoteAddr())) <- conn:
		default:
		}
	}
}

// from is where the connection of a client will be.
func (l *listeners) from(peer netip.AddrPort) chan net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting[peer] == nil {
		l.waiting[peer] = make(chan net.Conn, 1)
	}
	return l.waiting[peer]
}

// read hands datagrams to those whom they are for.
func (l *listeners) read() {
	for {
		buf := make([]byte, 1<<11)
		n, from, err := l.packets.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		addr := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		l.mu.Lock()
		p := l.udp[addr]
		if p == nil {
			p = &peer{l: l, to: from, in: make(chan []byte, 1<<14), end: make(chan struct{})}
			l.udp[addr] = p
		}
		l.mu.Unlock()
		select {
		case l.from(addr) <- p:
		default:
		}
		select {
		case p.in <- buf[:n]:
		default:
		}
	}
}

// peer is one client's datagrams at a server.
type peer struct {
	net.Conn // of what is not here nothing is called

	l    *listeners
	to   netip.AddrPort
	in   chan []byte
	end  chan struct{}
	once sync.Once
}

func (p *peer) Read(buf []byte) (int, error) {
	select {
	case b := <-p.in:
		return copy(buf, b), nil
	case <-p.end:
		return 0, net.ErrClosed
	}
}

func (p *peer) Write(b []byte) (int, error)      { return p.l.packets.WriteToUDPAddrPort(b, p.to) }
func (p *peer) SetWriteDeadline(time.Time) error { return nil }
func (p *peer) Close() error {
	p.once.Do(func() { close(p.end) })
	return nil
}

// meet connects and returns both ends.
func (c *client) meet(l *listeners, proto podns.Proto, to netip.AddrPort) (mine, theirs net.Conn, err error) {
	dialer := net.Dialer{Timeout: 2 * time.Second}
	if err := c.ns.Do(func() (err error) {
		mine, err = dialer.Dial(strings.ToLower(string(proto)), to.String()) // on this thread, since there is one address
		return err
	}); err != nil {
		return nil, nil, err
	}
	if proto == podns.UDP {
		if _, err := mine.Write([]byte("?")); err != nil {
			return nil, nil, errors.Join(err, mine.Close())
		}
	}
	select {
	case theirs = <-l.from(unmapped(mine.LocalAddr())):
		return mine, theirs, nil
	case <-time.After(2 * time.Second):
		return nil, nil, errors.Join(fmt.Errorf("%s to %s: no connection came", c.name, to), mine.Close())
	}
}
