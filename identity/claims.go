package identity

import (
	"errors"
	"strings"
	"unicode"

	"countersign/action"
)

// principal reads who calls from the claims of a token that was verified.
func (i *issuer) principal(claims map[string]any) (action.Principal, error) {
	subject, _ := claims["sub"].(string)
	if subject == "" {
		return action.Principal{}, refuse("the token has no sub")
	}
	p := action.Principal{Issuer: i.URL, Subject: subject, Username: subject, Groups: []string{}}
	for _, name := range []string{"azp", "client_id", "appid", "cid"} { // the standard's, then Entra ID's and Okta's
		v, present := claims[name]
		client, ok := v.(string)
		if present && (!ok || client == "") {
			return action.Principal{}, refuse("claim %s is not a name", name)
		}
		if p.Client == "" {
			p.Client = client
		}
	}
	var err error
	if i.UsernameClaim != "" {
		if p.Username, err = i.person(claims, i.UsernameClaim); err != nil {
			return action.Principal{}, err
		}
	}
	if err := i.onBehalfOf(&p, claims); err != nil {
		return action.Principal{}, err
	}
	switch {
	case i.Kubernetes:
		if p.Groups, err = serviceAccountGroups(subject); err != nil {
			return action.Principal{}, err
		}
	case i.GroupsClaim != "":
		if p.Groups, err = i.groups(claims); err != nil {
			return action.Principal{}, err
		}
	}
	p.Username = i.UsernamePrefix + p.Username
	for n := range p.Groups {
		p.Groups[n] = i.GroupsPrefix + p.Groups[n]
	}
	if err := i.checkNames(p); err != nil {
		return p, err
	}
	return p, i.checkPrefixes(p)
}

// checkPrefixes refuses names that begin as another issuer's do: an issuer without a
// prefix, or with a shorter one, could else name that one's users and groups.
func (i *issuer) checkPrefixes(p action.Principal) error {
	for _, other := range i.others {
		if n := other.UsernamePrefix; len(n) > len(i.UsernamePrefix) && strings.HasPrefix(p.Username, n) {
			return refuse("the user name is %.100q, which begins as those of issuer %s do", p.Username, other.URL)
		}
		for _, group := range p.Groups {
			if n := other.GroupsPrefix; len(n) > len(i.GroupsPrefix) && strings.HasPrefix(group, n) {
				return refuse("the name of a group is %.100q, which begins as those of issuer %s do", group, other.URL)
			}
		}
	}
	return nil
}

// person reads a claim that names somebody.
func (i *issuer) person(claims map[string]any, path string) (string, error) {
	v, _ := at(claims, path)
	name, ok := v.(string)
	if !ok || name == "" {
		return "", refuse("the token has no claim %s", path)
	}
	// As the Kubernetes API server does: an address that its issuer has not
	// confirmed can be anybody's.
	if verified, present := claims["email_verified"]; path == "email" && present && verified != true {
		return "", refuse("the token's email is not verified")
	}
	return name, nil
}

// onBehalfOf reads for whom an agent acts. That name has no prefix: it is compared
// with people's accounts and e-mail addresses elsewhere.
func (i *issuer) onBehalfOf(p *action.Principal, claims map[string]any) (err error) {
	if i.OnBehalfOfClaim != "" {
		p.OnBehalfOf, err = i.person(claims, i.OnBehalfOfClaim)
		return err
	}
	if claims["act"] == nil {
		return nil
	}
	act, _ := claims["act"].(map[string]any)
	agent, ok := act["sub"].(string)
	if !ok || agent == "" {
		return refuse("the token's act has no sub")
	}
	p.OnBehalfOf, p.Client = p.Username, agent
	return nil
}

// groups reads the groups claim. One that is configured and absent is refused: rules
// that deny by group would not see what they look for.
func (i *issuer) groups(claims map[string]any) ([]string, error) {
	// Entra ID leaves groups out of the token when there are too many, and names
	// where they could be asked for; hasgroups is the same in the implicit flow.
	top, _, _ := strings.Cut(i.GroupsClaim, ".")
	elsewhere, _ := claims["_claim_names"].(map[string]any)
	_, moved := elsewhere[i.GroupsClaim]
	_, movedTop := elsewhere[top]
	if moved || movedTop || i.GroupsClaim == "groups" && claims["hasgroups"] != nil {
		return nil, refuse("claim %s: the caller is in more groups than the issuer writes into a token (group overage); let it write only those that are assigned to the application, or roles", i.GroupsClaim)
	}
	v, _ := at(claims, i.GroupsClaim)
	groups, err := list(v)
	if err != nil {
		return nil, refuse("claim %s: %v", i.GroupsClaim, err)
	}
	return groups, nil
}

// at finds a claim: of exactly that name, as those that are URLs need it, or else by
// a path of names with dots between them, which may hold dots themselves.
func at(claims map[string]any, path string) (any, bool) {
	if v, ok := claims[path]; ok {
		return v, true
	}
	for dot := strings.LastIndexByte(path, '.'); dot > 0; dot = strings.LastIndexByte(path[:dot], '.') {
		if inner, ok := claims[path[:dot]].(map[string]any); ok {
			if v, ok := at(inner, path[dot+1:]); ok {
				return v, true
			}
		}
	}
	return nil, false
}

// list reads one text, or a list of texts. A text is one name, whatever is in it: no
// issuer that is known writes several into one, and "Domain Admins" is one group.
func list(v any) ([]string, error) {
	var items []any
	switch v := v.(type) {
	case nil:
		return nil, errors.New("is missing")
	case string:
		items = []any{v}
	case []any:
		items = v
	default:
		return nil, errors.New("is neither text nor a list")
	}
	out := make([]string, len(items))
	for i, item := range items {
		s, ok := item.(string)
		if !ok {
			return nil, errors.New("holds something that is not text")
		}
		if s == "" {
			return nil, errors.New("holds an empty text")
		}
		out[i] = s
	}
	return out, nil
}

// serviceAccountGroups are those that the API server itself adds to a service
// account (Kubernetes, Authenticating, "Service account tokens").
func serviceAccountGroups(subject string) ([]string, error) {
	rest, ok := strings.CutPrefix(subject, "system:serviceaccount:")
	namespace, name, both := strings.Cut(rest, ":")
	if !ok || !both || namespace == "" || name == "" {
		return nil, refuse("the subject is not a service account")
	}
	return []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace}, nil
}

// maxName bounds a name in bytes; approvers read it, and each record holds it.
const maxName = 1024

// checkNames refuses names that do not show what they are, and those of Kubernetes
// itself from anybody else.
func (i *issuer) checkNames(p action.Principal) error {
	for _, of := range []struct {
		what  string
		names []string
	}{{"subject", []string{p.Subject}}, {"user name", []string{p.Username}}, {"name of the client", []string{p.Client}}, {"name of the person", []string{p.OnBehalfOf}}, {"name of a group", p.Groups}} {
		what, user := of.what, of.what == "user name" || of.what == "name of a group"
		for _, name := range of.names {
			switch {
			case len(name) > maxName:
				return refuse("the %s has %d bytes; at most %d are taken", what, len(name), maxName)
			case strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }):
				return refuse("the %s has a character that cannot be seen: %.100q", what, name)
			case user && !i.Kubernetes && strings.HasPrefix(name, "system:"):
				return refuse("the %s is %.100q; only an issuer with kubernetes: true has names that begin with system:", what, name)
			}
		}
	}
	return nil
}
