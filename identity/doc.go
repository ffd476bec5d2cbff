// Package identity turns a bearer token into a Principal, or refuses it.
//
// It is the only room that imports go-oidc. It knows which issuers are trusted
// and how their claims are read; it does not know what a principal may do. A
// token goes no further than this room.
package identity
