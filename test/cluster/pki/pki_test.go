package pki

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

func issue(t *testing.T, r Request) (*x509.Certificate, *x509.CertPool) {
	t.Helper()
	dir := t.TempDir()
	ca, err := NewAuthority(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(r)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := tls.LoadX509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("ca.crt holds no certificate")
	}
	if info, err := os.Stat(pair.Key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v; want it readable by its owner only", info.Mode(), err)
	}
	return loaded.Leaf, pool
}

func TestServingCertificate(t *testing.T) {
	cert, pool := issue(t, Request{Name: "apiserver", User: "kube-apiserver", DNS: []string{"kubernetes.default.svc"},
		Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd10:96::1")}})
	for _, name := range []string{"kubernetes.default.svc", "10.96.0.1", "[fd10:96::1]"} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, DNSName: name, KeyUsages: []x509.ExtKeyUsage{
			x509.ExtKeyUsageServerAuth}}); err != nil {
			t.Errorf("does not serve %s: %v", name, err)
		}
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, DNSName: "10.96.0.2"}); err == nil {
		t.Errorf("serves an address that was not asked for")
	}
}

func TestClientCertificate(t *testing.T) {
	cert, pool := issue(t, Request{Name: "node1", User: "system:node:node1", Groups: []string{"system:nodes"}})
	if cert.Subject.CommonName != "system:node:node1" || len(cert.Subject.Organization) != 1 ||
		cert.Subject.Organization[0] != "system:nodes" {
		t.Errorf("subject %v; want user system:node:node1 of system:nodes", cert.Subject)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("not a client certificate: %v", err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
		t.Errorf("a client's certificate can serve")
	}
}
