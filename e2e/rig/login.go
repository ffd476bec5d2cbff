package rig

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
)

// login is what an Issuer knows of those who log in there: OAuth's authorization
// code with PKCE, by clients that register themselves (RFC 7591). Nobody is asked
// anything: whoever opens the authorization address is alice.
type login struct {
	redirects map[string][]string   // of each client
	codes     map[string]url.Values // what each code was asked for with
}

// loginMetadata is what the login adds to the issuer's discovery document.
func (i *Issuer) loginMetadata() map[string]any {
	return map[string]any{
		"authorization_endpoint": i.URL + "/authorize", "token_endpoint": i.URL + "/token", "registration_endpoint": i.URL + "/register",
		"response_types_supported": []string{"code"}, "grant_types_supported": []string{"authorization_code"},
		"code_challenge_methods_supported": []string{"S256"}, "token_endpoint_auth_methods_supported": []string{"none"},
		"authorization_response_iss_parameter_supported": true,
	}
}

func (i *Issuer) serveLogin(mux *http.ServeMux) {
	i.login = login{redirects: map[string][]string{}, codes: map[string]url.Values{}}
	mux.HandleFunc("POST /register", i.register)
	mux.HandleFunc("GET /authorize", i.authorize)
	mux.HandleFunc("POST /token", i.exchange)
}

func (i *Issuer) register(w http.ResponseWriter, r *http.Request) {
	var client struct {
		ID        string   `json:"client_id"`
		Redirects []string `json:"redirect_uris"`
		Method    string   `json:"token_endpoint_auth_method"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&client); err != nil || len(client.Redirects) == 0 {
		refuse(w, "invalid_client_metadata")
		return
	}
	client.ID, client.Method = rand.Text(), "none"
	i.mu.Lock()
	i.login.redirects[client.ID] = client.Redirects
	i.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	json.NewEncoder(w).Encode(client)
}

func (i *Issuer) authorize(w http.ResponseWriter, r *http.Request) {
	asked := r.URL.Query()
	i.mu.Lock()
	defer i.mu.Unlock()
	back, err := url.Parse(asked.Get("redirect_uri"))
	switch {
	case err != nil || !slices.Contains(i.login.redirects[asked.Get("client_id")], asked.Get("redirect_uri")):
		refuse(w, "invalid_client")
	case asked.Get("response_type") != "code":
		refuse(w, "unsupported_response_type")
	case asked.Get("code_challenge_method") != "S256" || asked.Get("code_challenge") == "":
		refuse(w, "invalid_request")
	case !slices.Equal(asked["resource"], []string{i.Resource}):
		refuse(w, "invalid_target")
	default:
		code := rand.Text()
		i.login.codes[code] = asked
		back.RawQuery = url.Values{"code": {code}, "state": {asked.Get("state")}, "iss": {i.URL}}.Encode()
		http.Redirect(w, r, back.String(), http.StatusFound)
	}
}

func (i *Issuer) exchange(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
	if err := r.ParseForm(); err != nil {
		refuse(w, "invalid_request")
		return
	}
	given := r.PostForm
	i.mu.Lock()
	asked, known := i.login.codes[given.Get("code")]
	delete(i.login.codes, given.Get("code"))
	i.mu.Unlock()
	proof := sha256.Sum256([]byte(given.Get("code_verifier")))
	switch {
	case given.Get("grant_type") != "authorization_code":
		refuse(w, "unsupported_grant_type")
	case !known || given.Get("client_id") != asked.Get("client_id") || given.Get("redirect_uri") != asked.Get("redirect_uri") ||
		base64.RawURLEncoding.EncodeToString(proof[:]) != asked.Get("code_challenge"):
		refuse(w, "invalid_grant")
	case !slices.Equal(given["resource"], []string{i.Resource}):
		refuse(w, "invalid_target")
	default:
		token, err := i.Token(map[string]any{
			"sub": "alice", "aud": i.Resource, "groups": []string{"agents"}, "scope": asked.Get("scope"), "client_id": asked.Get("client_id"),
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		json.NewEncoder(w).Encode(map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": 3600, "scope": asked.Get("scope")})
	}
}

// refuse answers with an error of RFC 6749, section 5.2, or of those that add to it.
func refuse(w http.ResponseWriter, mistake string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	json.NewEncoder(w).Encode(map[string]string{"error": mistake})
}
