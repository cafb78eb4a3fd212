// Package pki makes the certificates of a test cluster. An Authority lives in the caller's memory and on the caller's
// goroutine; the files it writes are the only other state.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// validity is how long certificates last: far longer than a test cluster.
const validity = 365 * 24 * time.Hour

// clockSkew is how much earlier than now certificates become valid.
const clockSkew = time.Hour

// Pair names the files of a certificate and its key.
type Pair struct{ Cert, Key string }

// PairIn returns the files of the certificate with this name in a directory.
func PairIn(dir, name string) Pair {
	return Pair{Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
}

// Request describes a certificate. One with names or addresses serves, every one may be used as a client.
type Request struct {
	Name   string   // of the files
	User   string   // common name: the user, to Kubernetes
	Groups []string // organizations: the user's groups, to Kubernetes
	DNS    []string
	Addrs  []netip.Addr
}

// Authority signs certificates into a directory.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority creates a certificate authority and writes its certificate and key as NAME.crt and NAME.key.
func NewAuthority(dir, name string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("create authority %s: %w", name, err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	a := &Authority{dir: dir, cert: template, key: key}
	der, err := a.sign(template, key)
	if err != nil {
		return nil, fmt.Errorf("create authority %s: %w", name, err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("create authority %s: %w", name, err)
	}
	return a, write(PairIn(dir, name), der, key)
}

// Issue creates a key and a certificate and writes both.
func (a *Authority) Issue(r Request) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("issue certificate %s: %w", r.Name, err)
	}
	der, err := a.sign(template(r), key)
	if err != nil {
		return Pair{}, fmt.Errorf("issue certificate %s: %w", r.Name, err)
	}
	pair := PairIn(a.dir, r.Name)
	return pair, write(pair, der, key)
}

func template(r Request) *x509.Certificate {
	cert := &x509.Certificate{
		Subject:     pkix.Name{CommonName: r.User, Organization: r.Groups},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames:    r.DNS,
	}
	for _, addr := range r.Addrs {
		cert.IPAddresses = append(cert.IPAddresses, net.IP(addr.AsSlice()))
	}
	if len(r.DNS)+len(r.Addrs) > 0 {
		cert.ExtKeyUsage = append(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	return cert
}

func (a *Authority) sign(cert *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	cert.SerialNumber = serial
	cert.NotBefore = time.Now().Add(-clockSkew)
	cert.NotAfter = time.Now().Add(validity)
	return x509.CreateCertificate(rand.Reader, cert, a.cert, &key.PublicKey, a.key)
}

// WriteKeyPair creates a signing key for service account tokens and writes it, with the public key as Cert.
func WriteKeyPair(dir, name string) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("create key %s: %w", name, err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return Pair{}, fmt.Errorf("create key %s: %w", name, err)
	}
	pair := Pair{Cert: filepath.Join(dir, name+".pub"), Key: filepath.Join(dir, name+".key")}
	if err := writePEM(pair.Cert, "PUBLIC KEY", public, 0o644); err != nil {
		return Pair{}, err
	}
	return pair, writeKey(pair.Key, key)
}

func write(pair Pair, der []byte, key *ecdsa.PrivateKey) error {
	if err := writePEM(pair.Cert, "CERTIFICATE", der, 0o644); err != nil {
		return err
	}
	return writeKey(pair.Key, key)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return writePEM(path, "EC PRIVATE KEY", der, 0o600)
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
