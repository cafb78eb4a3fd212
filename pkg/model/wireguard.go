package model

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// WireGuardName is the name of the device that encrypts pods' packets to peer nodes.
const WireGuardName = "weft-wg"

// WireGuardKey is a public key (Curve25519). The zero value is none.
type WireGuardKey [32]byte

// String is the form that wg(8) shows: base64.
func (k WireGuardKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// Compare orders keys by their bytes.
func (k WireGuardKey) Compare(o WireGuardKey) int { return bytes.Compare(k[:], o[:]) }

// In reports whether a sorted list has the key.
func (k WireGuardKey) In(sorted []WireGuardKey) bool {
	_, found := slices.BinarySearchFunc(sorted, k, WireGuardKey.Compare)
	return found
}

// WireGuard is what a node publishes of its device: the zero value is none.
type WireGuard struct {
	Key  WireGuardKey
	Port uint16
}

// String is the form of the annotation weft.dev/wireguard: KEY@PORT.
func (w WireGuard) String() string { return w.Key.String() + "@" + strconv.Itoa(int(w.Port)) }

// ParseWireGuard reads the form of String.
func ParseWireGuard(s string) (w WireGuard, err error) {
	text, port, _ := strings.Cut(s, "@")
	key, keyErr := base64.StdEncoding.DecodeString(text)
	n, portErr := strconv.ParseUint(port, 10, 16)
	w = WireGuard{Port: uint16(n)}
	if keyErr != nil || len(key) != len(w.Key) || portErr != nil || n == 0 {
		return WireGuard{}, fmt.Errorf("%q is not KEY@PORT with a key of %d bytes in base64", s, len(w.Key))
	}
	copy(w.Key[:], key)
	if w.Key == (WireGuardKey{}) {
		return WireGuard{}, fmt.Errorf("%q: the key is zero", s)
	}
	return w, nil
}

// WireGuardPeer is a peer node on the device. The zero value is none.
type WireGuardPeer struct {
	Key WireGuardKey
	// Endpoint is where encrypted packets are sent.
	Endpoint netip.AddrPort
}

// Valid reports whether there is one.
func (p WireGuardPeer) Valid() bool { return p.Key != WireGuardKey{} }
