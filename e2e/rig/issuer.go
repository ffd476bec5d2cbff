package rig

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Issuer is an OpenID Connect issuer on this machine, for clusters whose own
// issuer cannot be reached from here and for tokens that no real one would mint.
type Issuer struct {
	URL string
	// Resource, set before Start, lets people log in for this address (RFC 8707), and
	// for no other.
	Resource string
	address  string
	server   *http.Server

	mu       sync.Mutex
	key      *rsa.PrivateKey // signs Token
	kid      string
	keys     []jose.JSONWebKey
	down     bool
	padding  int
	requests int
	login    login
}

const keyID = "rig"

// NewIssuer makes one that does not answer before Start.
func NewIssuer() (*Issuer, error) {
	address, err := FreeAddress()
	if err != nil {
		return nil, err
	}
	i := &Issuer{URL: "http://" + address, address: address}
	return i, i.Rotate(keyID)
}

// StartIssuer makes one that answers.
func StartIssuer() (*Issuer, error) {
	i, err := NewIssuer()
	if err != nil {
		return nil, err
	}
	return i, i.Start()
}

// Start lets it answer.
func (i *Issuer) Start() error {
	l, err := net.Listen("tcp", i.address)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	serve := func(path string, document func() map[string]any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			i.mu.Lock()
			defer i.mu.Unlock()
			i.requests++
			if i.down {
				http.Error(w, "down", http.StatusServiceUnavailable)
				return
			}
			answer := document()
			if i.padding > 0 {
				answer["padding"] = strings.Repeat("x", i.padding)
			}
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(answer)
		})
	}
	serve("/.well-known/openid-configuration", func() map[string]any {
		document := map[string]any{
			"issuer": i.URL, "jwks_uri": i.URL + "/keys", "id_token_signing_alg_values_supported": []string{"RS256", "HS256", "none"},
			"authorization_endpoint": i.URL + "/none", "response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
		}
		if i.Resource != "" {
			maps.Copy(document, i.loginMetadata())
		}
		return document
	})
	if i.Resource != "" {
		i.serveLogin(mux)
	}
	serve("/keys", func() map[string]any { return map[string]any{"keys": i.keys} })
	i.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go i.server.Serve(l)
	return nil
}

// Rotate makes a new key, of this id: the only one that is published, and that signs.
func (i *Issuer) Rotate(kid string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.key, i.kid = key, kid
	i.keys = []jose.JSONWebKey{{Key: key.Public(), KeyID: kid, Algorithm: "RS256", Use: "sig"}}
	return nil
}

// Publish adds a key that somebody else signs with.
func (i *Issuer) Publish(key jose.JSONWebKey) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = append(i.keys, key)
}

// Key is the key that signs, and its id.
func (i *Issuer) Key() (*rsa.PrivateKey, string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.key, i.kid
}

// Down makes it answer everything with an error, or as before.
func (i *Issuer) Down(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

// Pad makes its documents larger by so many bytes.
func (i *Issuer) Pad(bytes int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.padding = bytes
}

// Requests is how many it was asked.
func (i *Issuer) Requests() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.requests
}

// Claims are claims for a good token: iss, iat and exp are added where they are
// not given, and those that are nil are left out.
func (i *Issuer) Claims(claims map[string]any) map[string]any {
	all := map[string]any{"iss": i.URL, "iat": time.Now().Unix(), "exp": time.Now().Add(24 * time.Hour).Unix()}
	for name, value := range claims {
		if all[name] = value; value == nil {
			delete(all, name)
		}
	}
	return all
}

// Token mints a token with these claims, as Claims completes them.
func (i *Issuer) Token(claims map[string]any) (string, error) {
	payload, err := json.Marshal(i.Claims(claims))
	if err != nil {
		return "", fmt.Errorf("minting a token: %w", err)
	}
	key, kid := i.Key()
	header, err := json.Marshal(map[string]string{"alg": "RS256", "kid": kid})
	if err != nil {
		return "", fmt.Errorf("minting a token: %w", err)
	}
	return JWT(string(header), string(payload), RS256(key)), nil
}

// JWT writes a token of any header and payload, as they are. The signature is
// what sign makes of them, whatever the header says.
func JWT(header, payload string, sign func(input []byte) []byte) string {
	raw := base64.RawURLEncoding.EncodeToString
	input := raw([]byte(header)) + "." + raw([]byte(payload))
	return input + "." + raw(sign([]byte(input)))
}

// RS256 signs with a key.
func RS256(key *rsa.PrivateKey) func([]byte) []byte {
	return func(input []byte) []byte {
		digest := sha256.Sum256(input)
		signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
		if err != nil {
			panic(err) // a key that is too small for a digest
		}
		return signature
	}
}

// Close stops it.
func (i *Issuer) Close() error {
	if i.server == nil {
		return nil
	}
	return i.server.Close()
}
