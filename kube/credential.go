package kube

import (
	"cmp"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// credential is what a cluster is asked with, before a service account's token is
// asked for with it. client-go looks after it: it reads files again when they have
// changed, and runs a plugin when what it gave has expired.
type credential struct {
	config *rest.Config
	// name says where it is from, without its value.
	name string
}

// load reads the credential. It refuses one that others can read or change.
func load(config Config) (credential, error) {
	if config.Kubeconfig == "" {
		// The mode of its token is the kubelet's to choose, within the pod.
		inCluster, err := rest.InClusterConfig()
		return credential{inCluster, "in-cluster"}, err
	}
	if err := private(config.Kubeconfig); err != nil {
		return credential{}, err
	}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: config.Kubeconfig},
		&clientcmd.ConfigOverrides{CurrentContext: config.Context},
	)
	loaded, err := loader.ClientConfig()
	if err != nil {
		return credential{}, err
	}
	for _, file := range []string{loaded.KeyFile, loaded.BearerTokenFile} {
		if file == "" {
			continue
		}
		if err := private(file); err != nil {
			return credential{}, fmt.Errorf("%s names %w", config.Kubeconfig, err)
		}
	}
	if plugin := loaded.ExecProvider; plugin != nil {
		if plugin.InteractiveMode == clientcmdapi.AlwaysExecInteractiveMode {
			return credential{}, fmt.Errorf("%s: the plugin %s wants somebody to talk to (interactiveMode: Always), and a server has nobody", config.Kubeconfig, plugin.Command)
		}
		// On stdio, what the server reads is the agent's.
		plugin.InteractiveMode, plugin.StdinUnavailable = clientcmdapi.NeverExecInteractiveMode, true
	}
	user := ""
	if raw, err := loader.RawConfig(); err == nil {
		if context := raw.Contexts[cmp.Or(config.Context, raw.CurrentContext)]; context != nil {
			user = context.AuthInfo
		}
	}
	name := "kubeconfig user " + cmp.Or(user, `""`)
	if as := loaded.Impersonate.UserName; as != "" {
		name += " as " + as
	}
	return credential{loaded, name}, nil
}

// httpClientFor makes a client that gives up in time on a plugin too, which client-go
// runs without a context.
func httpClientFor(config *rest.Config) (*http.Client, error) {
	client, err := rest.HTTPClientFor(config)
	if err == nil && config.ExecProvider != nil {
		client.Transport = impatient{client.Transport}
	}
	return client, err
}

// impatient does not wait for what outlives a request's context. What comes of it
// later is not sent: sending looks at the context again.
type impatient struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t impatient) RoundTrip(req *http.Request) (*http.Response, error) {
	type answer struct {
		resp *http.Response
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		resp, err := t.next.RoundTrip(req) //nolint:bodyclose // handed on, or closed below
		done <- answer{resp, err}
	}()
	select {
	case a := <-done:
		return a.resp, a.err
	case <-req.Context().Done():
		go func() {
			if a := <-done; a.resp != nil {
				a.resp.Body.Close()
			}
		}()
		return nil, fmt.Errorf("waiting for a credential or an answer: %w", req.Context().Err())
	}
}

// WrappedRoundTripper lets client-go find what is below.
func (t impatient) WrappedRoundTripper() http.RoundTripper { return t.next }

// private refuses a file that everybody may read, or a group write. A group may
// read: that is how Kubernetes hands a Secret to a pod that does not run as root.
func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o037 != 0 {
		return fmt.Errorf("%s, which may be read by everybody or written by a group (mode %04o): chmod 600 it", path, mode)
	}
	return nil
}

// String names the credential as it is now, with when it expires. It reads files,
// and asks nobody.
func (c credential) String() (text string, expires time.Time) {
	r := c.config
	var kind string
	switch {
	case r.ExecProvider != nil:
		return c.name + ", exec plugin " + filepath.Base(r.ExecProvider.Command), time.Time{}
	case r.AuthProvider != nil:
		return c.name + ", auth provider " + r.AuthProvider.Name, time.Time{}
	case r.BearerTokenFile != "" || r.BearerToken != "":
		token := r.BearerToken
		if r.BearerTokenFile != "" {
			data, err := os.ReadFile(r.BearerTokenFile)
			if err != nil {
				return c.name + ", token file that cannot be read: " + err.Error(), time.Time{}
			}
			token = strings.TrimSpace(string(data))
		}
		subject, until := claims(token)
		kind, expires = "token", until
		if account, found := strings.CutPrefix(subject, "system:serviceaccount:"); found {
			kind = "service account " + strings.Replace(account, ":", "/", 1) + ", token"
		}
	case len(r.CertData) > 0 || r.CertFile != "":
		data := r.CertData
		if r.CertFile != "" {
			var err error
			if data, err = os.ReadFile(r.CertFile); err != nil {
				return c.name + ", client certificate that cannot be read: " + err.Error(), time.Time{}
			}
		}
		kind = "client certificate"
		if block, _ := pem.Decode(data); block != nil {
			if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
				expires = cert.NotAfter
			}
		}
	case r.Username != "":
		kind = "password"
	default:
		kind = "no credential"
	}
	return c.name + ", " + kind + until(expires), expires
}

func until(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " until " + t.UTC().Format(time.RFC3339)
}

// claims are whose a token is and when it expires, as it says itself. They are
// shown and nothing else.
func claims(token string) (subject string, expires time.Time) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", time.Time{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", time.Time{}
	}
	var c struct {
		Subject string  `json:"sub"`
		Expires float64 `json:"exp"`
	}
	if json.Unmarshal(payload, &c) != nil {
		return "", time.Time{}
	}
	if c.Expires > 0 {
		expires = time.Unix(int64(c.Expires), 0)
	}
	return c.Subject, expires
}

// errAs is a mistake in the configuration.
var errAs = errors.New("its user impersonates already (as): that and impersonate do not go together; take another user, or act as a serviceAccount")
