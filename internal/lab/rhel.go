package lab

// RHEL is a box whose trust store is laid out as that of RHEL and Fedora: anchors
// in /etc/pki/ca-trust/source/anchors, the program update-ca-trust, the bundle at
// /etc/pki/tls/certs/ca-bundle.crt. It is an emulation: everything else is
// Debian's, and update-ca-trust is a script around Debian's p11-kit, which is what
// the real one is too. What Go and OpenSSL would look for on Debian is gone.
func RHEL() BoxConfig {
	return BoxConfig{
		Files: map[string]string{
			"etc/os-release": "NAME=\"an emulation\"\nID=rhel\nID_LIKE=fedora\nVERSION_ID=9\n",
			"etc/pkcs11/modules/p11-kit-trust.module": rhelTrustModule,
			"etc/pki/ca-trust/source/anchors/.keep":   "",
			"etc/pki/ca-trust/source/blocklist/.keep": "",
			"usr/bin/update-ca-trust":                 rhelUpdate,
		},
		Setup: rhelSetup,
	}
}

// rhelTrustModule has p11-kit read RHEL's directories. A module in /etc takes the
// place of the one of its name in /usr.
const rhelTrustModule = `module: p11-kit-trust.so
priority: 1
trust-policy: yes
x-trust-lookup: pkcs11:library-description=PKCS%2311%20Kit%20Trust%20Module
disable-in: p11-kit-proxy
x-init-reserved: paths='/etc/pki/ca-trust/source:/usr/share/pki/ca-trust-source'
`

const rhelUpdate = `#!/bin/sh
# update-ca-trust [extract]: makes the bundles anew from the sources.
set -eu
case ${1:-extract} in
extract) ;;
*) echo "update-ca-trust: unknown command: $1" >&2; exit 1 ;;
esac
to=/etc/pki/ca-trust/extracted
mkdir -p $to/pem $to/openssl
trust extract --comment --format=pem-bundle --filter=ca-anchors --overwrite --purpose server-auth $to/pem/tls-ca-bundle.pem
trust extract --comment --format=openssl-bundle --filter=certificates --overwrite $to/openssl/ca-bundle.trust.crt
`

const rhelSetup = `
mkdir -p /usr/share/pki/ca-trust-source/anchors /etc/pki/tls/certs
cp /etc/ssl/certs/ca-certificates.crt /usr/share/pki/ca-trust-source/anchors/mozilla.pem
rm -rf /etc/ssl/certs /usr/lib/ssl/certs /usr/local/share/ca-certificates /usr/share/ca-certificates \
	/etc/ca-certificates /etc/ca-certificates.conf /usr/sbin/update-ca-certificates
ln -s /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem /etc/pki/tls/certs/ca-bundle.crt
ln -s /etc/pki/ca-trust/extracted/openssl/ca-bundle.trust.crt /etc/pki/tls/certs/ca-bundle.trust.crt
ln -s /etc/pki/tls/certs/ca-bundle.crt /etc/pki/tls/cert.pem
ln -s ../pki/tls/certs /etc/ssl/certs
chmod 755 /usr/bin/update-ca-trust
update-ca-trust
`
