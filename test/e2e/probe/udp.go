package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// The largest UDP datagram, and what the kernel is asked to buffer for a few of them.
const (
	maxDatagram   = 65535
	receiveBuffer = 4 << 20
)

// udpSocket receives datagrams on all addresses of a family and answers each from the address that it was sent to. An
// ordinary wildcard socket answers from whichever address the route back prefers, and a node has several.
type udpSocket interface {
	receive(buf []byte) (n int, from net.Addr, to net.IP, err error)
	send(b []byte, to net.Addr, from net.IP) error
}

// listenUDP opens a socket of each family that the kernel has.
func listenUDP(port int) ([]udpSocket, error) {
	var sockets []udpSocket
	for _, network := range []string{"udp4", "udp6"} {
		conn, err := net.ListenUDP(network, &net.UDPAddr{Port: port})
		if errors.Is(err, syscall.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		socket, err := newUDPSocket(conn)
		if err != nil {
			return nil, err
		}
		sockets = append(sockets, socket)
	}
	return sockets, nil
}

func newUDPSocket(conn *net.UDPConn) (udpSocket, error) {
	if err := conn.SetReadBuffer(receiveBuffer); err != nil {
		return nil, err
	}
	if local := netip.MustParseAddrPort(conn.LocalAddr().String()); local.Addr().Is4() {
		s := udp4{ipv4.NewPacketConn(conn)}
		err := s.SetControlMessage(ipv4.FlagDst, true)
		return s, err
	}
	s := udp6{ipv6.NewPacketConn(conn)}
	err := s.SetControlMessage(ipv6.FlagDst, true)
	return s, err
}

type udp4 struct{ *ipv4.PacketConn }

func (s udp4) receive(buf []byte) (n int, from net.Addr, to net.IP, err error) {
	n, cm, from, err := s.ReadFrom(buf)
	if cm != nil {
		to = cm.Dst
	}
	return n, from, to, err
}

func (s udp4) send(b []byte, to net.Addr, from net.IP) error {
	_, err := s.WriteTo(b, &ipv4.ControlMessage{Src: from}, to)
	return err
}

type udp6 struct{ *ipv6.PacketConn }

func (s udp6) receive(buf []byte) (n int, from net.Addr, to net.IP, err error) {
	n, cm, from, err := s.ReadFrom(buf)
	if cm != nil {
		to = cm.Dst
	}
	return n, from, to, err
}

func (s udp6) send(b []byte, to net.Addr, from net.IP) error {
	_, err := s.WriteTo(b, &ipv6.ControlMessage{Src: from}, to)
	return err
}

// echoUDP answers each datagram with the client's address as seen here, a newline, and the datagram itself.
func echoUDP(socket udpSocket) error {
	buf := make([]byte, maxDatagram)
	for {
		n, from, to, err := socket.receive(buf)
		if err != nil {
			return fmt.Errorf("UDP echo server: %w", err)
		}
		answer := append([]byte(seenFrom(from)+"\n"), buf[:n]...)
		if err := socket.send(answer, from, to); err != nil {
			slog.Warn("echo UDP", "to", from, "size", len(answer), "err", err)
		}
	}
}
