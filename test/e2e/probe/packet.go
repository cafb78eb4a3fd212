package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// spoofPace is the time between two frames: a burst would overflow the switch's receive buffer, and what the switch
// never saw it can neither stop nor count.
const spoofPace = time.Millisecond

// spoof sends frames as they are on an interface, and datagrams through an ordinary socket.
func spoof(_ []string) error {
	var request wire.SpoofRequest
	if err := readJSON(&request); err != nil {
		return err
	}
	reply := wire.SpoofReply{Sent: map[string]int{}}
	if len(request.Frames) > 0 {
		if err := sendFrames(request, reply.Sent); err != nil {
			return err
		}
	}
	for _, d := range request.Datagrams {
		if err := sendDatagram(d, request.Count); err != nil {
			return err
		}
		reply.Sent[d.Label] += request.Count
	}
	return printJSON(reply)
}

func sendFrames(request wire.SpoofRequest, sent map[string]int) error {
	fd, to, err := packetSocket(request.Iface)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for range request.Count {
		for _, f := range request.Frames {
			if err := unix.Sendto(fd, f.Data, 0, to); err != nil {
				return fmt.Errorf("send frame %s on %s: %w", f.Label, request.Iface, err)
			}
			sent[f.Label]++
			time.Sleep(spoofPace)
		}
	}
	return nil
}

func sendDatagram(d wire.LabelledDatagram, count int) error {
	conn, err := dialDatagram(d.To)
	if err != nil {
		return fmt.Errorf("send datagram %s: %w", d.Label, err)
	}
	defer conn.Close()
	for range count {
		// A port without a listener is reported on the next write; the datagram before it has left all the same.
		if _, err := conn.Write(d.Data); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("send datagram %s to %s: %w", d.Label, d.To, err)
		}
		time.Sleep(spoofPace)
	}
	return nil
}

func dialDatagram(to netip.AddrPort) (net.Conn, error) {
	if to.Port() != 0 {
		return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	}
	return net.Dial("ip:47", to.Addr().String()) // GRE
}

// packetSocket opens a raw socket that is bound to one interface and sees every protocol.
func packetSocket(iface string) (fd int, addr *unix.SockaddrLinklayer, err error) {
	link, err := net.InterfaceByName(iface)
	if err != nil {
		return -1, nil, fmt.Errorf("interface %s: %w", iface, err)
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return -1, nil, fmt.Errorf("open a packet socket (needs CAP_NET_RAW): %w", err)
	}
	addr = &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}
	if err := unix.Bind(fd, addr); err != nil {
		return -1, nil, errors.Join(fmt.Errorf("bind a packet socket to %s: %w", iface, err), unix.Close(fd))
	}
	return fd, addr, nil
}

// links prints the interfaces of the network namespace.
func links(_ []string) error {
	ifaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	var reply wire.LinksReply
	for _, iface := range ifaces {
		addrs, err := iface.Addrs()
		if err != nil {
			return fmt.Errorf("addresses of %s: %w", iface.Name, err)
		}
		link := wire.Link{Name: iface.Name, Index: iface.Index, MTU: iface.MTU, MAC: iface.HardwareAddr.String()}
		for _, a := range addrs {
			prefix, err := netip.ParsePrefix(a.String())
			if err != nil {
				return err
			}
			link.Addrs = append(link.Addrs, prefix)
		}
		reply.Links = append(reply.Links, link)
	}
	return printJSON(reply)
}
