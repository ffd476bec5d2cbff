package rig

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Issuer is an OpenID Connect issuer on this machine, for clusters whose own
// issuer cannot be reached from here and for tokens that no real one would mint.
type Issuer struct {
	URL    string
	key    *rsa.PrivateKey
	server *http.Server
}

const keyID = "rig"

// StartIssuer starts one.
func StartIssuer() (*Issuer, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	i := &Issuer{URL: "http://" + l.Addr().String(), key: key}
	mux := http.NewServeMux()
	serve := func(path string, v any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(v)
		})
	}
	serve("/.well-known/openid-configuration", map[string]any{
		"issuer": i.URL, "jwks_uri": i.URL + "/keys", "id_token_signing_alg_values_supported": []string{"RS256"},
		"authorization_endpoint": i.URL + "/none", "response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
	})
	serve("/keys", jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: keyID, Algorithm: "RS256", Use: "sig"}}})
	i.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go i.server.Serve(l)
	return i, nil
}

// Token mints a token with these claims; iss, iat and exp are added where they
// are not given.
func (i *Issuer) Token(claims map[string]any) (string, error) {
	all := map[string]any{"iss": i.URL, "iat": time.Now().Unix(), "exp": time.Now().Add(24 * time.Hour).Unix()}
	for name, value := range claims {
		all[name] = value
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: i.key, KeyID: keyID}}, nil)
	if err != nil {
		return "", fmt.Errorf("minting a token: %w", err)
	}
	return jwt.Signed(signer).Claims(all).Serialize()
}

// Close stops it.
func (i *Issuer) Close() error { return i.server.Close() }
