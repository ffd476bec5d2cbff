package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// account is a user whom the API server knows by a static token.
type account struct {
	name, group, token string
	kubeconfig         string // file name in the cluster's folder
}

// credentials are made anew for each start and live as long as the cluster.
type credentials struct {
	admin, controllers, scheduler, kwok account

	cert      tls.Certificate // serves the API and the simulated nodes
	certFile  string          // also the CA that clients trust: it is self-signed
	keyFile   string
	saKeyFile string // signs service-account tokens
	tokenFile string
}

func makeCredentials(dir string) (*credentials, error) {
	c := &credentials{
		admin:       account{"kubernetes-admin", "system:masters", rand.Text(), "kubeconfig"},
		controllers: account{"system:kube-controller-manager", "system:authenticated", rand.Text(), "controller-manager.kubeconfig"},
		scheduler:   account{"system:kube-scheduler", "system:authenticated", rand.Text(), "scheduler.kubeconfig"},
		kwok:        account{"kwok", "system:masters", rand.Text(), "kwok.kubeconfig"},
		certFile:    filepath.Join(dir, "apiserver.crt"),
		keyFile:     filepath.Join(dir, "apiserver.key"),
		saKeyFile:   filepath.Join(dir, "service-account.key"),
		tokenFile:   filepath.Join(dir, "tokens.csv"),
	}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(now.UnixNano()),
		Subject:               pkix.Name{CommonName: "controlplane"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.AddDate(1, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames:              []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	c.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}

	// RSA, because RS256 is what clusters use and what every OIDC client accepts.
	saKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}

	var tokens strings.Builder
	for i, a := range c.accounts() {
		fmt.Fprintf(&tokens, "%s,%s,%d,%q\n", a.token, a.name, i, a.group)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	for path, content := range map[string][]byte{
		c.certFile:  pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		c.keyFile:   pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
		c.saKeyFile: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(saKey)}),
		c.tokenFile: []byte(tokens.String()),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *credentials) accounts() []account {
	return []account{c.admin, c.controllers, c.scheduler, c.kwok}
}

// writeKubeconfigs writes one file for each account. They carry the CA in them, so that a
// copy of one works anywhere on this machine.
func (c *credentials) writeKubeconfigs(dir, server string) error {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Certificate[0]})
	for _, a := range c.accounts() {
		content := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: controlplane
  cluster: {server: %q, certificate-authority-data: %q}
users:
- name: %[3]q
  user: {token: %[4]q}
contexts:
- name: controlplane
  context: {cluster: controlplane, user: %[3]q}
current-context: controlplane
`, server, base64.StdEncoding.EncodeToString(ca), a.name, a.token)
		if err := os.WriteFile(filepath.Join(dir, a.kubeconfig), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}
