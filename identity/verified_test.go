package identity

import (
	"crypto/sha256"
	"net/http/httptest"
	"reflect"
	"strconv"
	"testing"
	"time"

	"countersign/action"
)

// A token that was verified is taken again without its issuer for a while, but
// not beyond its expiry; one that was refused never is, nor one like it.
func TestVerifiedAgain(t *testing.T) {
	p := start(t, httptest.NewServer)
	a := authenticator(t, Issuer{URL: p.URL, GroupsClaim: "groups"})
	now := time.Now()
	var later time.Duration
	a.now = func() time.Time { return now.Add(later) }
	long := p.token(t, nil)
	short := p.token(t, map[string]any{"exp": now.Add(verifiedFor / 2).Unix()})
	refused := p.token(t, map[string]any{"aud": "x"})
	first, _, err := a.Authenticate(t.Context(), long)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Authenticate(t.Context(), short); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Authenticate(t.Context(), refused); err == nil {
		t.Fatal("a token for somebody else is believed")
	}

	a.issuers = nil // whoever is let in now is so by what is remembered
	again, _, err := a.Authenticate(t.Context(), long)
	if err != nil || !reflect.DeepEqual(again, first) {
		t.Errorf("%+v, %v; want %+v", again, err, first)
	}
	again.Groups[0] = "masters"
	if again, _, _ := a.Authenticate(t.Context(), long); !reflect.DeepEqual(again, first) {
		t.Errorf("what one caller does with its groups becomes another's: %+v", again)
	}
	for _, token := range []string{refused, long + "x", long[:len(long)-1]} {
		if _, _, err := a.Authenticate(t.Context(), token); err == nil {
			t.Errorf("%s is believed", token)
		}
	}
	for _, row := range []struct {
		after time.Duration
		token string
		taken bool
	}{
		{verifiedFor/2 - 2*time.Second, short, true},
		{verifiedFor / 2, short, false},
		{verifiedFor - time.Second, long, true},
		{verifiedFor, long, false},
	} {
		later = row.after
		_, _, err := a.Authenticate(t.Context(), row.token)
		if (err == nil) != row.taken {
			t.Errorf("after %s: %v", row.after, err)
		}
	}
}

func TestVerifiedIsBounded(t *testing.T) {
	var v verified
	now := time.Now()
	for i := range 3 * maxVerified {
		v.keep(sha256.Sum256([]byte(strconv.Itoa(i))), action.Principal{}, nil, now.Add(time.Hour), now)
	}
	if len(v.tokens) > maxVerified {
		t.Errorf("%d tokens are known", len(v.tokens))
	}
}

// What a token is for comes with it, in each form that issuers write it, and again
// when the token does.
func TestScopes(t *testing.T) {
	p := start(t, httptest.NewServer)
	a := authenticator(t, Issuer{URL: p.URL})
	for name, row := range map[string]struct {
		claims map[string]any
		want   []string
	}{
		"none":                   {nil, nil},
		"scope":                  {map[string]any{"scope": " read  change "}, []string{"read", "change"}},
		"scp as text":            {map[string]any{"scp": "read change"}, []string{"read", "change"}},
		"scp as a list":          {map[string]any{"scp": []any{"read", "change"}}, []string{"read", "change"}},
		"both":                   {map[string]any{"scope": "read", "scp": []any{"change"}}, []string{"read", "change"}},
		"a number":               {map[string]any{"scope": 7}, nil},
		"a list with a number":   {map[string]any{"scp": []any{7, "read"}}, []string{"read"}},
		"a list of several each": {map[string]any{"scp": []any{"read change"}}, []string{"read change"}},
	} {
		token := p.token(t, row.claims)
		for range 2 {
			if _, got, err := a.Authenticate(t.Context(), token); err != nil || !reflect.DeepEqual(got, row.want) {
				t.Errorf("%s: %q, %v; want %q", name, got, err, row.want)
			}
		}
	}
}
